//! Texts that are nearly right.

use proptest::prelude::*;

/// Words that a mutilated text gets in place of its own.
const WORDS: [&str; 20] = [
    "''",
    "0",
    "-1",
    "65536",
    "a b",
    "'\\n'",
    "stock",
    "b",
    "[]",
    "{}",
    "null",
    "'('",
    "/",
    "'%'",
    "5xx",
    "Exact",
    "1s",
    "Disabled",
    "RegularExpression",
    "shop",
];

/// Texts of documents, which are accepted, mutilated: lines doubled, dropped, swapped, and words replaced.
pub(crate) fn mutilated(text: String) -> impl Strategy<Value = String> {
    let edit = (
        any::<prop::sample::Index>(),
        any::<prop::sample::Index>(),
        0..4_u8,
        prop::sample::select(WORDS.to_vec()),
    );
    prop::collection::vec(edit, 0..4).prop_map(move |edits| {
        let mut lines: Vec<String> = text.lines().map(ToOwned::to_owned).collect();
        for (at, other, kind, word) in edits {
            let (at, other) = (at.index(lines.len()), other.index(lines.len()));
            match kind {
                0 => lines.swap(at, other),
                1 => drop(lines.remove(at)),
                2 => lines.insert(at, lines[other].clone()),
                _ => {
                    // The value behind one of the colons of the line.
                    let parts: Vec<&str> = lines[at].split(": ").collect();
                    let which = 1 + other % parts.len().max(1);
                    let replaced = parts.iter().enumerate().map(|(i, part)| {
                        let end = part.find([',', '}', ']']).unwrap_or(part.len());
                        if i == which { format!("{word}{}", &part[end..]) } else { (*part).to_owned() }
                    });
                    lines[at] = replaced.collect::<Vec<_>>().join(": ");
                }
            }
        }
        lines.join("\n") + "\n"
    })
}
