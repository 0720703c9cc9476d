//! Pages of a listing.
//!
//! A page ends at an object, and the next one takes up after that object's place in the order
//! of creation, so that objects which come and go in between neither repeat nor hide others.
//! The token holds that place and a digest of what was asked; it is opaque to callers.

use rusqlite::Connection;
use sha2::{Digest, Sha256};

use super::{Described, filter, filter::Filter};
use crate::{
    accounts::Account,
    db::{self, DbResult},
    error::{ApiError, ApiResult},
    ids::hex,
};

/// Objects on a page when the caller does not say.
const DEFAULT_RESULTS: u32 = 100;

/// Most objects on a page.
const MAX_RESULTS: u32 = 1_000;

/// A page ends early, with a token, when its objects take about this many bytes: clients refuse
/// answers above 4 MiB.
const MAX_BYTES: usize = 2 << 20;

/// How many rows are read at once, at least, while not every one is on the page.
const BATCH: u32 = 500;

/// What a Describe call asks for, checked.
#[derive(Clone, Debug)]
pub struct Query {
    ids: Vec<String>,
    filters: Vec<Filter>,
    max_results: usize,
    after_seq: i64,
    digest: String,
    account: Account,
    include_hidden: bool,
}

/// A page and the token of the next one (empty on the last).
#[derive(Debug, PartialEq, Eq)]
pub struct Page<T> {
    /// The objects, in the order of creation.
    pub objects: Vec<T>,
    /// Opaque.
    pub next_token: String,
}

impl Query {
    /// Checks what a caller asks; `ids` are already checked.
    pub fn new<T: Described>(
        account: Account,
        ids: Vec<String>,
        filters: Vec<Filter>,
        max_results: u32,
        next_token: &str,
    ) -> ApiResult<Self> {
        filter::check::<T>(&filters)?;
        let max_results = match max_results {
            0 => DEFAULT_RESULTS,
            1..=MAX_RESULTS => max_results,
            _ => {
                return Err(ApiError::invalid(
                    "page.max_results",
                    format!("a page has at most {MAX_RESULTS} objects"),
                ));
            }
        };
        let digest = digest(&ids, &filters);
        let after_seq = if next_token.is_empty() {
            0
        } else {
            read_token(next_token, &digest)?
        };
        Ok(Self {
            ids,
            filters,
            max_results: max_results as usize,
            after_seq,
            digest,
            account,
            include_hidden: false,
        })
    }

    /// Lists also what is hidden from those who do not own it.
    pub fn including_hidden(self, include_hidden: bool) -> Self {
        Self {
            include_hidden,
            ..self
        }
    }

    /// How many of the objects fit on the page; at least one.
    fn fitting<T: Described>(&self, objects: &[T]) -> usize {
        let mut bytes = 0usize;
        objects
            .iter()
            .take(self.max_results)
            .take_while(|object| {
                let first = bytes == 0;
                bytes = bytes.saturating_add(512 + object.weight());
                first || bytes <= MAX_BYTES
            })
            .count()
    }

    /// Reads one page of what the account may see. `get` looks an id up and must fail, naming
    /// the field that it is given, when there is none; `after` lists in the order of creation.
    pub fn page<T: Described>(
        &self,
        connection: &Connection,
        ids_field: &str,
        get: impl Fn(&Connection, &str, &str) -> ApiResult<T>,
        after: impl Fn(&Connection, i64, u32) -> DbResult<Vec<T>>,
    ) -> ApiResult<Page<T>> {
        let shared = db::permissions::shared_with(connection, self.account.as_ref())?;
        let visible =
            |object: &T| self.account.owns(object.owner()) || shared.contains(object.id());
        let listed = |object: &T| {
            self.include_hidden || self.account.owns(object.owner()) || !object.hidden()
        };
        let mut objects = Vec::new();
        if self.ids.is_empty() {
            // One more than wanted tells whether there is a next page.
            let one_page = self.max_results as u32 + 1;
            let batch = if self.filters.is_empty() && self.account.is_all() {
                one_page
            } else {
                one_page.max(BATCH)
            };
            let mut seq = self.after_seq;
            'rows: loop {
                let rows = after(connection, seq, batch)?;
                let last_batch = rows.len() < batch as usize;
                for row in rows {
                    seq = row.seq();
                    if visible(&row) && listed(&row) && filter::matches(&row, &self.filters) {
                        objects.push(row);
                        if objects.len() > self.max_results {
                            break 'rows;
                        }
                    }
                }
                if last_batch {
                    break;
                }
            }
        } else {
            for (index, id) in self.ids.iter().enumerate() {
                let field = format!("{ids_field}[{index}]");
                let object = get(connection, id, &field)?;
                if !visible(&object) {
                    return Err(T::KIND.missing(id, &field));
                }
                objects.push(object);
            }
            objects.retain(|object| {
                object.seq() > self.after_seq && filter::matches(object, &self.filters)
            });
            objects.sort_by_key(T::seq);
        }
        let fitting = self.fitting(&objects);
        let more = objects.len() > fitting;
        objects.truncate(fitting);
        let next_token = match objects.last() {
            Some(last) if more => write_token(last.seq(), &self.digest),
            _ => String::new(),
        };
        Ok(Page {
            objects,
            next_token,
        })
    }
}

/// Digest of what is asked, so that a token is not used with another question.
fn digest(ids: &[String], filters: &[Filter]) -> String {
    let mut hasher = Sha256::new();
    let mut add = |text: &str| {
        hasher.update((text.len() as u64).to_le_bytes());
        hasher.update(text);
    };
    ids.iter().for_each(|id| add(id));
    add("");
    for filter in filters {
        add(&filter.name);
        filter.values.iter().for_each(|value| add(value));
        add("");
    }
    hex(&hasher.finalize()[..8])
}

fn write_token(seq: i64, digest: &str) -> String {
    format!("{seq:016x}{digest}")
}

fn read_token(token: &str, digest: &str) -> ApiResult<i64> {
    let bad = |message: &str| ApiError::invalid("page.next_token", message);
    let (seq, asked) = token
        .split_at_checked(16)
        .ok_or_else(|| bad("this is not a token that hearthd gave out"))?;
    let seq = i64::from_str_radix(seq, 16)
        .ok()
        .filter(|&seq| seq > 0)
        .ok_or_else(|| bad("this is not a token that hearthd gave out"))?;
    if asked != digest {
        return Err(bad(
            "this token belongs to a call with other ids or filters",
        ));
    }
    Ok(seq)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{ids::Kind, tags::Tag};

    fn local() -> Account {
        Account::of(&tonic::Request::new(())).expect("default")
    }

    #[derive(Debug, PartialEq, Eq)]
    struct Row(i64);

    impl Described for Row {
        const FILTERS: &'static [&'static str] = &["parity"];
        const KIND: Kind = Kind::Volume;
        fn id(&self) -> &str {
            "vol-0123456789abcdef0"
        }
        fn owner(&self) -> &str {
            if self.0 > 100_000 { "other" } else { "local" }
        }
        fn seq(&self) -> i64 {
            self.0
        }
        fn values(&self, _filter: &str) -> Vec<String> {
            vec![if self.0 % 2 == 0 { "even" } else { "odd" }.to_owned()]
        }
        fn weight(&self) -> usize {
            // One in a thousand is very large.
            if self.0 % 1000 == 0 {
                2 * MAX_BYTES
            } else {
                10
            }
        }
        fn tags(&self) -> &[Tag] {
            &[]
        }
    }

    fn page_of(rows: &[i64], query: &Query) -> Page<Row> {
        let mut connection = Connection::open_in_memory().expect("open");
        db::migrate(&mut connection).expect("tables");
        let after = |_: &Connection, seq: i64, limit: u32| {
            let later = rows.iter().filter(|&&row| row > seq).take(limit as usize);
            Ok(later.map(|&row| Row(row)).collect())
        };
        let get = |_: &Connection, id: &str, _: &str| Ok(Row(id.parse().expect("number")));
        query.page(&connection, "ids", get, after).expect("page")
    }

    fn query(max_results: u32, token: &str) -> Query {
        Query::new::<Row>(local(), vec![], vec![], max_results, token).expect("valid")
    }

    #[test]
    fn pages_neither_repeat_nor_hide_objects_while_others_come_and_go() {
        let mut rows: Vec<i64> = (1..=10).collect();
        let first = page_of(&rows, &query(4, ""));
        assert_eq!(first.objects, [Row(1), Row(2), Row(3), Row(4)]);
        // The one on which the page ended goes, and a new one comes.
        rows.retain(|&row| row != 4 && row != 6);
        rows.push(11);
        let second = page_of(&rows, &query(4, &first.next_token));
        assert_eq!(second.objects, [Row(5), Row(7), Row(8), Row(9)]);
        let third = page_of(&rows, &query(4, &second.next_token));
        assert_eq!(
            third,
            Page {
                objects: vec![Row(10), Row(11)],
                next_token: String::new()
            }
        );
    }

    #[test]
    fn a_page_that_ends_with_the_last_object_has_no_token() {
        assert_eq!(page_of(&[1, 2], &query(2, "")).next_token, "");
    }

    #[test]
    fn a_page_ends_before_it_is_too_large_for_clients_and_has_at_least_one_object() {
        let rows = [998, 999, 1000, 1001];
        let first = page_of(&rows, &query(0, ""));
        assert_eq!(first.objects, [Row(998), Row(999)]);
        let second = page_of(&rows, &query(0, &first.next_token));
        assert_eq!(second.objects, [Row(1000)]);
        let third = page_of(&rows, &query(0, &second.next_token));
        assert_eq!(
            third,
            Page {
                objects: vec![Row(1001)],
                next_token: String::new()
            }
        );
    }

    #[test]
    fn filters_fill_pages_across_batches() {
        let rows: Vec<i64> = (1..=3000).collect();
        let odd = Filter {
            name: "parity".to_owned(),
            values: vec!["odd".to_owned()],
        };
        let mut token = String::new();
        let mut seen = 0;
        loop {
            let query =
                Query::new::<Row>(local(), vec![], vec![odd.clone()], 1000, &token).expect("valid");
            let page = page_of(&rows, &query);
            seen += page.objects.len();
            token = page.next_token;
            if token.is_empty() {
                break;
            }
        }
        assert_eq!(seen, 1500);
    }

    #[test]
    fn what_belongs_to_others_is_not_on_the_page() {
        let rows = [1, 100_001, 100_003, 100_004];
        assert_eq!(page_of(&rows, &query(0, "")).objects, [Row(1)]);
    }

    #[test]
    fn a_token_of_another_question_or_of_nobody_is_refused() {
        let token = page_of(&[1, 2, 3], &query(1, "")).next_token;
        let odd = Filter {
            name: "parity".to_owned(),
            values: vec!["odd".to_owned()],
        };
        for (filters, token) in [
            (vec![odd], token.as_str()),
            (vec![], "nonsense"),
            (vec![], "zzzzzzzzzzzzzzzzé"),
            (vec![], "éééééééééééééééééé"),
        ] {
            let error = Query::new::<Row>(local(), vec![], filters, 0, token).expect_err("refused");
            assert_eq!(error.fields(), ["page.next_token"]);
        }
        let error = Query::new::<Row>(local(), vec![], vec![], 1001, "").expect_err("too many");
        assert_eq!(error.fields(), ["page.max_results"]);
    }
}
