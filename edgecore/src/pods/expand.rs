//! `$(VAR)` expansion in command, args, env and subPathExpr, as Kubernetes defines it: `$$` is a dollar, an unknown reference stays as written.

/// Expands references; `lookup` gives a variable's value.
pub fn expand(text: &str, mut lookup: impl FnMut(&str) -> Option<String>) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('$') {
        out.push_str(&rest[..at]);
        let after = &rest[at + 1..];
        if let Some(tail) = after.strip_prefix('$') {
            out.push('$');
            rest = tail;
        } else if let Some((name, tail)) = after.strip_prefix('(').and_then(|inner| inner.split_once(')')) {
            match lookup(name) {
                Some(value) => out.push_str(&value),
                None => {
                    out.push_str("$(");
                    out.push_str(name);
                    out.push(')');
                }
            }
            rest = tail;
        } else {
            out.push('$');
            rest = after;
        }
    }
    out.push_str(rest);
    out
}

#[cfg(test)]
mod tests {
    use super::expand;

    #[test]
    fn follows_kubernetes() {
        let look = |name: &str| (name == "A").then(|| "x".to_owned());
        for (text, wanted) in [
            ("$(A)", "x"),
            ("a-$(A)-b", "a-x-b"),
            ("$$(A)", "$(A)"),
            ("$$$(A)", "$x"),
            ("$(B)", "$(B)"),
            ("$A $", "$A $"),
            ("$(A", "$(A"),
            ("$()", "$()"),
        ] {
            assert_eq!(expand(text, look), wanted, "{text}");
        }
    }

    proptest::proptest! {
        #[test]
        fn text_without_a_dollar_is_kept(text in "[^$]{0,64}") {
            proptest::prop_assert_eq!(expand(&text, |_| None), text);
        }
        #[test]
        fn never_panics(text in "[$()A ]{0,64}") {
            expand(&text, |_| Some("v".into()));
        }
    }
}
