//! Topic filters: which topics they take in (MQTT 3.1.1, section 4.7).

/// Whether a client may subscribe to this.
pub(super) fn is_filter(filter: &str) -> bool {
    let mut levels = filter.split('/').rev();
    let whole = |level: &str| level.len() == 1 || !level.contains(['+', '#']);
    let last = levels.next().unwrap_or_default();
    !filter.is_empty()
        && !filter.starts_with("$share/")
        && whole(last)
        && levels.all(|level| whole(level) && level != "#")
}

/// Whether a filter takes in a topic.
pub(super) fn takes_in(filter: &str, topic: &str) -> bool {
    // Topics that begin with `$` are the broker's own: wildcards do not reach them.
    if topic.starts_with('$') && filter.starts_with(['+', '#']) {
        return false;
    }
    let mut levels = topic.split('/');
    for wanted in filter.split('/') {
        match (wanted, levels.next()) {
            ("#", _) => return true,
            ("+", Some(_)) => {}
            (wanted, Some(level)) if wanted == level => {}
            _ => return false,
        }
    }
    levels.next().is_none()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn filters_take_in_what_the_standard_says() {
        for (filter, topic, expected) in [
            ("a/b", "a/b", true),
            ("a/b", "a/b/c", false),
            ("a/b", "a", false),
            ("a/+", "a/b", true),
            ("a/+", "a/", true),
            ("a/+", "a", false),
            ("a/+", "a/b/c", false),
            ("+/+", "/b", true),
            ("a/#", "a", true),
            ("a/#", "a/b/c", true),
            ("a/#", "ab", false),
            ("#", "a/b", true),
            ("#", "$SYS/load", false),
            ("+/load", "$SYS/load", false),
            ("$SYS/#", "$SYS/load", true),
        ] {
            assert_eq!(takes_in(filter, topic), expected, "{filter} and {topic}");
        }
        for (filter, expected) in
            [("a/#", true), ("+", true), ("a/#/b", false), ("a/b#", false), ("$share/g/a", false)]
        {
            assert_eq!(is_filter(filter), expected, "{filter}");
        }
    }
}
