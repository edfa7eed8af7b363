//! "Did you mean": the known word nearest to an unknown one.
//!
//! # Argument
//! Distance is the least number of letters inserted, deleted, replaced or swapped with their
//! neighbour, case ignored. A third of the word may be wrong (at least one letter, two from four
//! letters on): beyond that a guess misleads more often than it helps.
//!
//! # Complexity
//! O(length²) a candidate; called for complaints only.

/// The candidate nearest to `word`, if one is near enough; of equals the first.
pub fn did_you_mean<'a>(
    word: &str,
    candidates: impl IntoIterator<Item = &'a str>,
) -> Option<&'a str> {
    let letters: Vec<char> = word.to_lowercase().chars().collect();
    let wrong_max = (letters.len() / 3).max(if letters.len() >= 4 { 2 } else { 1 });
    let tail = format!(".{}", word.to_lowercase());
    let mut best: Option<(usize, &str)> = None;
    for candidate in candidates {
        let lower = candidate.to_lowercase();
        let other: Vec<char> = lower.chars().collect();
        // `file-size` for `sink.rolling-policy.file-size`: the name is right, its prefix is
        // missing.
        let wrong =
            if !word.is_empty() && lower.ends_with(&tail) { 1 } else { distance(&letters, &other) };
        // A word with nothing in common is no suggestion, however short.
        let fits = wrong <= wrong_max && wrong < letters.len().max(other.len());
        if fits && best.is_none_or(|(least, _)| wrong < least) {
            best = Some((wrong, candidate));
        }
    }
    best.map(|(_, candidate)| candidate)
}

fn distance(a: &[char], b: &[char]) -> usize {
    let mut before: Vec<usize> = Vec::new();
    let mut last: Vec<usize> = (0..=b.len()).collect();
    for i in 1..=a.len() {
        let mut row = vec![i; b.len() + 1];
        for j in 1..=b.len() {
            let replaced = last[j - 1] + usize::from(a[i - 1] != b[j - 1]);
            row[j] = replaced.min(last[j] + 1).min(row[j - 1] + 1);
            let swapped = i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1];
            if swapped {
                row[j] = row[j].min(before[j - 2] + 1);
            }
        }
        before = std::mem::replace(&mut last, row);
    }
    last[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_the_nearest_and_nothing_far() {
        let known = ["connector", "format", "topic", "sink.rolling-policy.file-size"];
        let meant = |word: &str| did_you_mean(word, known);
        assert_eq!(meant("connectr"), Some("connector"));
        assert_eq!(meant("fromat"), Some("format"));
        assert_eq!(meant("TOPIC"), Some("topic"));
        assert_eq!(meant("file-size"), Some("sink.rolling-policy.file-size"));
        assert_eq!(meant("password"), None);
        assert_eq!(meant("x"), None);
        assert_eq!(did_you_mean("jsn", ["csv", "json"]), Some("json"));
        assert_eq!(did_you_mean("kafak", ["kafka", "mqtt"]), Some("kafka"));
    }
}
