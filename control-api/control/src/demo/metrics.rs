//! What the sidecars say about the traffic: their Prometheus pages, added up.

use std::collections::BTreeMap;

/// A series of a scrape.
pub(super) struct Sample<'a> {
    pub(super) name: &'a str,
    labels: BTreeMap<&'a str, String>,
    pub(super) value: f64,
}

impl Sample<'_> {
    fn label(&self, name: &str) -> &str {
        self.labels.get(name).map_or("", String::as_str)
    }
}

/// Who asks whom.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Edge {
    pub(super) from: String,
    pub(super) to: String,
}

/// What happened between two.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Counts {
    /// Requests, as the caller's sidecar saw them: after retries.
    pub(super) requests: u64,
    pub(super) succeeded: u64,
    /// Tries, as the other sidecar saw them: before retries.
    pub(super) tries: u64,
    pub(super) tries_succeeded: u64,
    /// Of the tries, those over mTLS.
    pub(super) mutual_tls: u64,
}

/// The sum of all sidecars.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct View {
    pub(super) edges: BTreeMap<Edge, Counts>,
    /// Attempts beyond the first, towards other services.
    pub(super) retries: u64,
    /// Configurations that a sidecar refused.
    pub(super) refused: u64,
    /// Certificates that each sidecar got, the first included.
    pub(super) certificates: Vec<u64>,
    /// Requests for one that failed.
    pub(super) certificates_refused: u64,
}

impl View {
    /// Adds the page of one sidecar.
    pub(super) fn add(&mut self, page: &str) {
        for sample in page.lines().filter_map(parse) {
            let value = sample.value as u64;
            match sample.name {
                "remora_requests_total" => self.requests(&sample, value),
                "remora_upstream_retries_total" if sample.label("cluster").starts_with("outbound|") => {
                    self.retries += value
                }
                "remora_config_updates_rejected_total" => self.refused += value,
                "remora_identity_requests_total" if sample.label("result") == "ok" => {
                    self.certificates.push(value);
                }
                "remora_identity_requests_total" => self.certificates_refused += value,
                _ => {}
            }
        }
    }

    fn requests(&mut self, sample: &Sample<'_>, value: u64) {
        let source = sample.label("reporter") == "source";
        // The caller's sidecar knows its own name; the other one knows the identity in the certificate.
        let from = sample.label(if source { "source_app" } else { "source_workload" });
        let to = sample.label("destination_workload");
        let edge = Edge { from: from.to_owned(), to: to.to_owned() };
        let counts = self.edges.entry(edge).or_default();
        let code: u16 = sample.label("response_code").parse().unwrap_or_default();
        let succeeded = if (100..500).contains(&code) { value } else { 0 };
        if source {
            counts.requests += value;
            counts.succeeded += succeeded;
        } else {
            counts.tries += value;
            counts.tries_succeeded += succeeded;
            if sample.label("connection_security_policy") == "mutual_tls" {
                counts.mutual_tls += value;
            }
        }
    }

    /// The sum of all edges whose end begins with `to`.
    pub(super) fn towards(&self, to: &str) -> Counts {
        let mut sum = Counts::default();
        for counts in self.edges.iter().filter(|(edge, _)| edge.to.starts_with(to)).map(|(_, counts)| counts)
        {
            sum.requests += counts.requests;
            sum.succeeded += counts.succeeded;
            sum.tries += counts.tries;
            sum.tries_succeeded += counts.tries_succeeded;
            sum.mutual_tls += counts.mutual_tls;
        }
        sum
    }
}

/// A line of the text format (prometheus.io `instrumenting/exposition_formats`).
fn parse(line: &str) -> Option<Sample<'_>> {
    if line.starts_with('#') {
        return None;
    }
    let Some((name, rest)) = line.split_once('{') else {
        let (name, value) = line.split_once(' ')?;
        return Some(Sample { name, labels: BTreeMap::new(), value: value.trim().parse().ok()? });
    };
    let (mut labels, mut rest) = (BTreeMap::new(), rest);
    loop {
        rest = rest.trim_start_matches(',');
        if let Some(value) = rest.strip_prefix('}') {
            return Some(Sample { name, labels, value: value.split_whitespace().next()?.parse().ok()? });
        }
        let (label, quoted) = rest.split_once("=\"")?;
        let (value, after) = unquote(quoted)?;
        labels.insert(label, value);
        rest = after;
    }
}

/// The text before the closing quote, and what comes after it.
fn unquote(text: &str) -> Option<(String, &str)> {
    let (mut value, mut chars) = (String::new(), text.char_indices());
    while let Some((at, c)) = chars.next() {
        match c {
            '"' => return Some((value, &text[at + 1..])),
            '\\' => match chars.next()?.1 {
                'n' => value.push('\n'),
                other => value.push(other),
            },
            _ => value.push(c),
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_of_both_sides_are_added_up() {
        let caller = r#"# TYPE remora_requests_total counter
remora_requests_total{reporter="source",source_app="shop",destination_workload="stock-2",response_code="200"} 9
remora_requests_total{reporter="source",source_app="shop",destination_workload="stock-2",response_code="503"} 1
remora_upstream_retries_total{cluster="outbound|80||x"} 3
remora_upstream_retries_total{cluster="inbound|80||"} 5
"#;
        let other = r#"remora_requests_total{reporter="destination",source_workload="shop",destination_workload="stock-2",response_code="200",connection_security_policy="mutual_tls"} 9
remora_requests_total{reporter="destination",source_workload="shop",destination_workload="stock-2",response_code="503",connection_security_policy="none"} 4
"#;
        let mut view = View::default();
        view.add(caller);
        view.add(other);
        let edge = Edge { from: "shop".into(), to: "stock-2".into() };
        let counts = Counts { requests: 10, succeeded: 9, tries: 13, tries_succeeded: 9, mutual_tls: 9 };
        assert_eq!(view.edges.get(&edge), Some(&counts));
        assert_eq!((view.retries, view.refused), (3, 0));
        assert_eq!(view.towards("stock"), counts);
    }

    #[test]
    fn quotes_and_braces_in_labels_are_text() {
        let sample = parse(r#"x{a="1\"},\\2",b="\n"} 7"#).unwrap();
        assert_eq!((sample.label("a"), sample.label("b"), sample.value), ("1\"},\\2", "\n", 7.0));
        assert!(parse(r#"x{a="1} 7"#).is_none());
    }
}
