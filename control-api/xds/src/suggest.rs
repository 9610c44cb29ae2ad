//! "Did you mean …?"

/// The name in `names` that `word` most probably stands for, if one is near enough.
#[must_use]
pub fn nearest<'a>(word: &str, names: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let word = plain(word);
    // One typing error in a short name, and one more for every six letters.
    let most = 1 + word.len() / 6;
    names
        .map(|name| (distance(&word, &plain(name), most), name))
        .filter(|(d, _)| *d <= most)
        .min_by_key(|(d, _)| *d)
        .map(|(_, name)| name)
}

/// The JSON name of a field: `connect_timeout` -> `connectTimeout`.
pub(crate) fn camel(snake: &str) -> String {
    let mut out = String::with_capacity(snake.len());
    let mut upper = false;
    for c in snake.chars() {
        if c == '_' {
            upper = true;
        } else {
            out.push(if upper { c.to_ascii_uppercase() } else { c });
            upper = false;
        }
    }
    out
}

/// Lower case, without the signs that are easily mixed up.
fn plain(name: &str) -> Vec<char> {
    name.chars().filter(|c| !matches!(c, '_' | '-')).take(200).map(|c| c.to_ascii_lowercase()).collect()
}

/// Number of insertions, deletions, changes and swaps of neighbours between two words (optimal string alignment), or
/// anything above `most` when it is more than that.
fn distance(a: &[char], b: &[char], most: usize) -> usize {
    if a.len().abs_diff(b.len()) > most {
        return most + 1;
    }
    let mut before: Vec<usize> = Vec::new();
    let mut last: Vec<usize> = (0..=b.len()).collect();
    for i in 1..=a.len() {
        let mut row = vec![i];
        for j in 1..=b.len() {
            let change = last[j - 1] + usize::from(a[i - 1] != b[j - 1]);
            let mut best = change.min(last[j] + 1).min(row[j - 1] + 1);
            if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                best = best.min(before[j - 2] + 1);
            }
            row.push(best);
        }
        before = std::mem::replace(&mut last, row);
    }
    last[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn near_names_are_found_and_far_ones_are_not() {
        let names = ["filter_chains", "name", "address", "connect_timeout"];
        for (word, expected) in [
            ("filter_chain", Some("filter_chains")),
            ("FilterChains", Some("filter_chains")),
            ("conect_timeout", Some("connect_timeout")),
            ("connect-timeout", Some("connect_timeout")),
            ("nmae", Some("name")),
            ("adress", Some("address")),
            ("timeout", None),
            ("x", None),
            ("", None),
        ] {
            assert_eq!(nearest(word, names.into_iter()), expected, "{word}");
        }
        assert_eq!(camel("xff_num_trusted_hops"), "xffNumTrustedHops");
    }
}
