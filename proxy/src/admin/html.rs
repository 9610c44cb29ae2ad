//! The list of pages.

use std::fmt::Write as _;

use super::pages::{PAGES, Page};

/// Makes `text` harmless inside HTML text and attributes (admin pages are a known way for injection).
pub(super) fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            c => out.push(c),
        }
    }
    out
}

/// `/`.
pub(super) fn home(version: &str) -> String {
    let mut out = String::from(
        "<!doctype html><html lang=\"en\"><head><meta charset=\"utf-8\"><title>Remora admin</title>",
    );
    out.push_str(
        "<style>body{font-family:sans-serif;margin:2em}td{padding:.2em 1em .2em 0}</style></head><body>",
    );
    // Writing to a String cannot fail.
    let _infallible = write!(out, "<h1>Remora {}</h1><table>", escape(version));
    for Page { path, help, change, .. } in PAGES {
        let (path, help) = (escape(path), escape(help));
        let _infallible = if change.is_post_only() {
            write!(
                out,
                "<tr><td><form method=\"post\" action=\"{path}\"><button>{path}</button></form></td><td>{help}</td></tr>"
            )
        } else {
            write!(out, "<tr><td><a href=\"{path}\">{path}</a></td><td>{help}</td></tr>")
        };
    }
    out.push_str("</table></body></html>\n");
    out
}

/// `/help`.
pub(super) fn help() -> String {
    PAGES.iter().fold(String::from("admin commands are:\n"), |mut out, page| {
        let post = if page.change.is_post_only() { " (POST)" } else { "" };
        let _infallible = writeln!(out, "  {}{post}: {}", page.path, page.help);
        out
    })
}
