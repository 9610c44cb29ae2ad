//! Columns for people.

use std::fmt::Write;

/// Rows under a head, in columns as wide as they must be. Nothing but spaces: `awk` reads it as well as people.
pub(super) fn table(head: &[&str], rows: &[Vec<String>]) -> String {
    let width = |column: usize| {
        let cells = rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count());
        cells.chain([head[column].len()]).max().unwrap_or(0)
    };
    let widths: Vec<_> = (0..head.len()).map(width).collect();
    let mut out = String::new();
    let mut line = |cells: &mut dyn Iterator<Item = &str>| {
        let mut text = String::new();
        for (cell, width) in cells.zip(&widths) {
            // Writing to a String does not fail.
            let _ = write!(text, "{cell:width$}   ");
        }
        out.push_str(text.trim_end());
        out.push('\n');
    };
    line(&mut head.iter().copied());
    for row in rows {
        line(&mut row.iter().map(String::as_str));
    }
    out
}

/// Seconds as kubectl writes them: `45s`, `7m12s`, `3h`, `12d`.
pub(super) fn duration(seconds: u64) -> String {
    let (minute, hour, day) = (60, 3600, 24 * 3600);
    match seconds {
        s if s < 2 * minute => format!("{s}s"),
        s if s < 10 * minute => format!("{}m{}s", s / minute, s % minute),
        s if s < 3 * hour => format!("{}m", s / minute),
        s if s < 2 * day => format!("{}h", s / hour),
        s => format!("{}d", s / day),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_aligned_and_lines_end_where_they_end() {
        let rows = vec![vec!["checkout".into(), "1".into()], vec!["a".into(), String::new()]];
        assert_eq!(table(&["NAME", "AGE"], &rows), "NAME       AGE\ncheckout   1\na\n");
        assert_eq!(table(&["NAME"], &[]), "NAME\n");
    }

    #[test]
    fn durations_are_short() {
        for (seconds, text) in
            [(5, "5s"), (119, "119s"), (432, "7m12s"), (3600, "60m"), (90_000, "25h"), (999_999, "11d")]
        {
            assert_eq!(duration(seconds), text);
        }
    }
}
