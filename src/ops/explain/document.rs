//! Comparing two JSON texts by their members.

use std::collections::BTreeSet;

use serde_json::Value;

/// How many members are told.
const MOST_MEMBERS: usize = 8;
/// How much of a value is told, in characters.
const LONGEST: usize = 80;

/// A member in which two JSON texts differ.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    /// Where it is, as in `layers[3].size`.
    pub path: String,
    /// Its value in the first model, as JSON; `None` when it is not there. A long one is cut off.
    pub ours: Option<String>,
    /// Its value in the second model.
    pub theirs: Option<String>,
}

/// The first members that differ, in the order of their names.
pub(super) fn members(ours: &Value, theirs: &Value) -> Vec<Member> {
    let mut found = Vec::new();
    walk(String::new(), Some(ours), Some(theirs), &mut found);
    found
}

fn walk(path: String, ours: Option<&Value>, theirs: Option<&Value>, found: &mut Vec<Member>) {
    if ours == theirs || found.len() == MOST_MEMBERS {
        return;
    }
    match (ours, theirs) {
        (Some(Value::Object(ours)), Some(Value::Object(theirs))) => {
            for key in ours.keys().chain(theirs.keys()).collect::<BTreeSet<_>>() {
                let path = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
                walk(path, ours.get(key), theirs.get(key), found);
            }
        }
        (Some(Value::Array(ours)), Some(Value::Array(theirs))) => {
            for at in 0..ours.len().max(theirs.len()) {
                walk(format!("{path}[{at}]"), ours.get(at), theirs.get(at), found);
            }
        }
        _ => found.push(Member { path, ours: ours.map(told), theirs: theirs.map(told) }),
    }
}

fn told(value: &Value) -> String {
    let text = value.to_string();
    match text.char_indices().nth(LONGEST) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn the_members_that_differ_are_named_by_their_path() {
        let ours = json!({"a": {"b": [1, 2, {"c": true}]}, "d": 1, "same": [1]});
        let theirs = json!({"a": {"b": [1, 3, {"c": false}, 4]}, "e": "x", "same": [1]});
        let member = |path: &str, ours: Option<&str>, theirs: Option<&str>| Member {
            path: path.to_owned(),
            ours: ours.map(str::to_owned),
            theirs: theirs.map(str::to_owned),
        };
        assert_eq!(
            members(&ours, &theirs),
            [
                member("a.b[1]", Some("2"), Some("3")),
                member("a.b[2].c", Some("true"), Some("false")),
                member("a.b[3]", None, Some("4")),
                member("d", Some("1"), None),
                member("e", None, Some("\"x\"")),
            ]
        );
        assert!(members(&ours, &ours).is_empty());
    }

    #[test]
    fn what_is_told_has_bounds() {
        let found = members(&json!(vec!["é".repeat(1000); 100]), &json!(vec![1; 100]));
        assert_eq!(found.len(), MOST_MEMBERS);
        assert_eq!(found[0].ours.as_ref().unwrap().chars().count(), LONGEST + 1);
    }
}
