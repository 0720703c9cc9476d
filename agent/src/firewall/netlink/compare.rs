//! What the kernel has, beside what is wanted.

use super::{
    attributes::{parse, same},
    encode::{self, SetHeader},
    read::{Hook, Raw, RawRule},
};
use crate::firewall::table::{Base, Chain, Expression, Lookup, Rule, Set, SetData, Table};

/// A table as the kernel has it, in the words of what is wanted.
#[derive(Debug, Default)]
pub struct Found {
    /// Where a rule is what is wanted, it is that here, too; what is not is
    /// [`Expression::Foreign`].
    pub table: Table,
    /// It can't be made of what is wanted by changes of rules, elements, and whole chains and
    /// sets, for this reason.
    pub beyond_repair: Option<String>,
}

impl Found {
    fn beyond(&mut self, reason: impl Into<String>) {
        self.beyond_repair.get_or_insert(reason.into());
    }
}

/// Looks at what the kernel has with `wanted` in mind.
pub fn compare(mut raw: Raw, wanted: &Table) -> Found {
    let mut found = Found::default();
    for (name, hook) in std::mem::take(&mut raw.chains) {
        let chain = wanted.chains.get(&name);
        let base = chain.and_then(|it| it.base);
        if hook != base.map(hook_of) {
            found.beyond(format!("chain {name} is at another hook"));
        }
        let wants = chain.map_or(&[][..], |it| &it.rules);
        let has = raw.rules.remove(&name).unwrap_or_default();
        let rules = has.iter().enumerate().map(|(number, rule)| {
            let wanted = wants.get(number).filter(|it| is_rule(rule, it));
            wanted.cloned().unwrap_or_else(foreign)
        });
        let rules = rules.collect();
        found.table.chains.insert(name, Chain { base, rules });
    }
    for (name, header) in std::mem::take(&mut raw.sets) {
        let Some(set) = wanted.sets.get(&name) else {
            // It goes, whatever it is, and its elements with it; what it is does not matter.
            let set = Set {
                key: Vec::new(),
                lookup: Lookup::Exact,
                data: SetData::Nothing,
                counters: false,
            };
            found.table.sets.insert(name, set);
            continue;
        };
        if !header.is(&SetHeader::of(set)) {
            found.beyond(format!("set {name} is of another kind"));
        }
        if let Some(elements) = raw.elements.remove(&name) {
            found.table.elements.insert(name.clone(), elements);
        }
        found.table.sets.insert(name, set.clone());
    }
    if raw.unusual {
        found.beyond("the table is dormant or owned");
    }
    if raw.uses.is_some_and(|uses| uses != raw.objects) {
        found.beyond("objects that are not ours");
    }
    found
}

fn hook_of(base: Base) -> Hook {
    Hook {
        kind: base.kind.to_owned(),
        number: base.hook,
        priority: base.priority,
        policy: Some(encode::NF_ACCEPT),
    }
}

fn foreign() -> Rule {
    Rule {
        expressions: vec![Expression::Foreign],
        comment: String::new(),
    }
}

fn is_rule(actual: &RawRule, wanted: &Rule) -> bool {
    let mut expressions = parse(&actual.expressions);
    let all = wanted.expressions.iter().all(|wanted| {
        let actual = expressions.next();
        actual.is_some_and(|it| same(&encode::expression(wanted), it.value))
    });
    let says = if wanted.comment.is_empty() {
        Vec::new()
    } else {
        encode::comment(&wanted.comment)
    };
    all && expressions.next().is_none() && actual.comment == says
}
