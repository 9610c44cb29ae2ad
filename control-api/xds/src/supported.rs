//! `docs/reference/envoy-fields.md`, made from `supported.txt` and the schema.

use std::fmt::Write;

use crate::schema::Schema;

const TABLE: &str = include_str!("../supported.txt");
const PAGE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/reference/envoy-fields.md");

/// The note behind a field in the table.
fn note<'t>(message: &str, field: &str) -> Option<&'t str> {
    let section = TABLE.split_once(&format!("\n[{message}]\n"))?.1;
    let section = section.split_once("\n[").map_or(section, |(own, _)| own);
    let line = section.lines().find(|line| line.split_whitespace().next() == Some(field))?;
    line.split_once('#').map(|(_, note)| note.trim())
}

fn page(schema: &Schema) -> String {
    let mut out = String::from(
        "# Envoy fields that Remora honours\n\n\
         Made from `control-api/xds/supported.txt` by `UPDATE=1 cargo test -p remora-xds supported`; do not edit.\n\n\
         Every other field of Envoy's v3 API is refused with its path when it is set, and so is every message that has no\n\
         section here. Protobuf's own types (`google.protobuf.*`) are honoured wherever a field has them.\n",
    );
    for name in schema.messages() {
        let (Some(plan), Some(desc)) = (schema.plan(name), schema.message(name)) else { continue };
        let _ = write!(out, "\n## {name}\n\n");
        if desc.fields().len() == 0 {
            out.push_str("May be present; none of its fields is honoured.\n");
        } else {
            out.push_str("| field | honoured |\n| --- | --- |\n");
        }
        for field in &plan.fields {
            let values: Vec<_> = field.values.iter().map(|v| format!("`{v}`")).collect();
            let mut said =
                if values.is_empty() { "yes".to_owned() } else { format!("only {}", values.join(", ")) };
            if let Some(note) = note(name, field.desc.name()) {
                let _ = write!(said, "; {note}");
            }
            let _ = writeln!(out, "| `{}` | {said} |", field.desc.name());
        }
        let advice: Vec<_> = plan.refused.iter().filter(|r| !r.fix.is_empty()).collect();
        if !advice.is_empty() {
            out.push_str("\nRefused, with advice:\n\n");
            for refused in &advice {
                let _ = writeln!(out, "- `{}`: {}", refused.name, refused.fix);
            }
        }
        let rest: Vec<_> =
            plan.refused.iter().filter(|r| r.fix.is_empty()).map(|r| format!("`{}`", r.name)).collect();
        if !rest.is_empty() {
            let _ = write!(out, "\nRefused: {}.\n", rest.join(", "));
        }
    }
    out
}

#[test]
fn the_page_of_supported_fields_is_current() {
    let wanted = page(&Schema::load());
    if std::env::var_os("UPDATE").is_some() {
        std::fs::create_dir_all(std::path::Path::new(PAGE).parent().unwrap()).unwrap();
        std::fs::write(PAGE, &wanted).unwrap();
    }
    let found = std::fs::read_to_string(PAGE).unwrap_or_default();
    assert!(found == wanted, "out of date: run UPDATE=1 cargo test -p remora-xds supported");
}

#[test]
fn notes_belong_to_their_field() {
    assert!(note("envoy.config.core.v3.RuntimeUInt32", "runtime_key").unwrap().contains("always holds"));
    assert_eq!(note("envoy.config.core.v3.RuntimeUInt32", "default_value"), None);
}
