//! Reads `supported.txt`.

use crate::Res;

/// A section: one message.
pub(crate) struct Section {
    pub(crate) name: String,
    pub(crate) fields: Vec<Field>,
}

/// A line of a section.
pub(crate) struct Field {
    pub(crate) name: String,
    /// The only supported values; empty for all.
    pub(crate) values: Vec<String>,
    /// Refused, with this advice.
    pub(crate) refused: Option<String>,
    /// It may hold a secret, whatever the API says.
    pub(crate) sensitive: bool,
}

/// Parses the table.
pub(crate) fn parse(text: &str) -> Res<Vec<Section>> {
    let mut sections: Vec<Section> = Vec::new();
    for (index, line) in text.lines().enumerate() {
        let line = line.split_once('#').map_or(line, |(head, _)| head).trim();
        let bad = |what: &str| format!("supported.txt:{}: {what}: {line}", index + 1);
        if line.is_empty() {
            continue;
        }
        if let Some(name) = line.strip_prefix('[') {
            let name = name.strip_suffix(']').ok_or_else(|| bad("unclosed section"))?;
            if sections.iter().any(|s| s.name == name) {
                return Err(bad("second section of the same message").into());
            }
            sections.push(Section { name: name.to_owned(), fields: Vec::new() });
            continue;
        }
        let section = sections.last_mut().ok_or_else(|| bad("a field before any section"))?;
        let field = field(line);
        if field.name.contains(char::is_whitespace) {
            return Err(bad("one field a line").into());
        }
        if section.fields.iter().any(|f| f.name == field.name) {
            return Err(bad("second line for the same field").into());
        }
        section.fields.push(field);
    }
    Ok(sections)
}

fn field(line: &str) -> Field {
    if let Some((name, fix)) = line.split_once('!') {
        let (values, refused) = (Vec::new(), Some(fix.trim().into()));
        return Field { name: name.trim().into(), values, refused, sensitive: false };
    }
    let (line, sensitive) = line.strip_suffix('*').map_or((line, false), |line| (line, true));
    let (name, values) = line.split_once('=').unwrap_or((line, ""));
    let values = values.split_whitespace().map(str::to_owned).collect();
    Field { name: name.trim().into(), values, refused: None, sensitive }
}
