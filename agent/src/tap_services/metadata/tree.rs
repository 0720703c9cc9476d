//! Folders and leaves, and how EC2 lists them.

use std::collections::BTreeMap;

/// What is at a path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Node {
    /// A text.
    Leaf(String),
    /// Names in order, what a listing says of each, and what is there.
    Folder(BTreeMap<String, Entry>),
}

/// One line of a listing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Shown instead of the name: public keys are listed as `0=name`.
    shown: Option<String>,
    node: Node,
}

impl Node {
    /// An empty folder.
    pub fn folder() -> Self {
        Self::Folder(BTreeMap::new())
    }

    /// With a leaf more. Nothing happens to a leaf.
    pub fn leaf(self, name: &str, text: impl Into<String>) -> Self {
        self.node(name, None, Self::Leaf(text.into()))
    }

    /// With a leaf more, if there is a text.
    pub fn optional(self, name: &str, text: Option<impl Into<String>>) -> Self {
        match text {
            Some(text) => self.leaf(name, text),
            None => self,
        }
    }

    /// With a folder more, unless that is empty.
    pub fn branch(self, name: &str, node: Self) -> Self {
        match node {
            Self::Folder(entries) if entries.is_empty() => self,
            node => self.node(name, None, node),
        }
    }

    /// With something more that is listed under another name.
    pub fn shown_as(self, name: &str, shown: String, node: Self) -> Self {
        self.node(name, Some(shown), node)
    }

    fn node(mut self, name: &str, shown: Option<String>, node: Self) -> Self {
        if let Self::Folder(entries) = &mut self {
            entries.insert(name.to_owned(), Entry { shown, node });
        }
        self
    }

    /// What is at a path below.
    pub fn at(&self, path: &[String]) -> Option<&Self> {
        let mut node = self;
        for name in path {
            let Self::Folder(entries) = node else {
                return None;
            };
            node = &entries.get(name)?.node;
        }
        Some(node)
    }

    /// A leaf's text, or a folder's listing: one name a line, folders with a slash.
    pub fn text(&self) -> String {
        let entries = match self {
            Self::Leaf(text) => return text.clone(),
            Self::Folder(entries) => entries,
        };
        let line = |(name, entry): (&String, &Entry)| match (&entry.shown, &entry.node) {
            (Some(shown), _) => shown.clone(),
            (None, Self::Folder(_)) => format!("{name}/"),
            (None, Self::Leaf(_)) => name.clone(),
        };
        entries.iter().map(line).collect::<Vec<_>>().join("\n")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn folders_are_listed_as_ec2_does() {
        let key = Node::folder().leaf("openssh-key", "ssh-ed25519 AAAA me");
        let tree = Node::folder()
            .leaf("b", "text")
            .optional("c", None::<String>)
            .branch("empty", Node::folder())
            .branch(
                "a",
                Node::folder().shown_as("0", "0=me".to_owned(), key.clone()),
            );
        assert_eq!(tree.text(), "a/\nb");
        let at = |path: &[&str]| {
            let path: Vec<String> = path.iter().map(|&name| name.to_owned()).collect();
            tree.at(&path).map(Node::text)
        };
        assert_eq!(at(&["a"]).as_deref(), Some("0=me"));
        assert_eq!(at(&["a", "0"]).as_deref(), Some("openssh-key"));
        assert_eq!(
            at(&["a", "0", "openssh-key"]).as_deref(),
            Some("ssh-ed25519 AAAA me")
        );
        assert_eq!(at(&["b", "x"]), None);
        assert_eq!(at(&["0=me"]), None);
    }
}
