//! What commands do again and again: all pages of a Describe call, and the deletion of several.

use hearth_proto::v1::PageRequest;

use crate::{failure::Failure, output};

/// All that a Describe call has. `call` asks for one page and gives its objects, and the token of
/// the next page (empty after the last one).
pub async fn all_pages<T>(
    mut call: impl AsyncFnMut(Option<PageRequest>) -> Result<(Vec<T>, String), Failure>,
) -> Result<Vec<T>, Failure> {
    let mut all = Vec::new();
    let mut page = None;
    loop {
        let (objects, next_token) = call(page.clone()).await?;
        all.extend(objects);
        if next_token.is_empty() {
            return Ok(all);
        }
        page.get_or_insert_with(PageRequest::default).next_token = next_token;
    }
}

/// Deletes one after the other, until one fails, and says which are gone.
pub async fn delete_each(
    ids: Vec<String>,
    mut delete: impl AsyncFnMut(String) -> Result<(), Failure>,
) -> Result<(), Failure> {
    for id in ids {
        delete(id.clone()).await?;
        output::line(&format!("{id}: deleted"))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn pages_are_asked_for_until_there_is_no_next_one() {
        let mut asked = Vec::new();
        let all = all_pages(async |page| {
            let token = page.map(|it: PageRequest| it.next_token);
            let answer = match token.as_deref() {
                None => (vec![1, 2], "a".to_owned()),
                // A page may be empty and not the last.
                Some("a") => (Vec::new(), "b".to_owned()),
                _ => (vec![3], String::new()),
            };
            asked.push(token);
            Ok(answer)
        });
        assert_eq!(all.await.expect("all"), [1, 2, 3]);
        assert_eq!(asked, [None, Some("a".to_owned()), Some("b".to_owned())]);
    }
}
