//! The documents of the demo, with the ports that things really have.

use std::collections::BTreeMap;

use anyhow::{Context, anyhow};
use serde_json::{Value, json};

use super::NAMESPACE;
use crate::document::{Text, read};

const DOCUMENTS: &str = include_str!("../../../../../deploy/examples/demo.yaml");

/// Share of v1 in the documents.
pub(in crate::demo) const FIRST_SPLIT: u32 = 90;
/// Share of v1 after the edit.
pub(in crate::demo) const SECOND_SPLIT: u32 = 50;

pub(super) struct Documents(Vec<Value>);

impl Documents {
    pub(super) fn read() -> anyhow::Result<Self> {
        let text = Text { name: "demo.yaml".into(), text: DOCUMENTS.into() };
        let all = read(&[text], NAMESPACE).map_err(|mistakes| {
            anyhow!(mistakes.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"))
        })?;
        Ok(Self(all.into_iter().map(|document| Value::Object(document.body)).collect()))
    }

    /// As a file.
    pub(super) fn text(&self) -> String {
        self.0.iter().map(text).collect()
    }

    /// The route, as a file.
    pub(super) fn route(&self) -> anyhow::Result<String> {
        self.find("HTTPRoute", "stock").map(text)
    }

    fn find(&self, kind: &str, name: &str) -> anyhow::Result<&Value> {
        let found = self.0.iter().find(|d| d["kind"] == kind && d["metadata"]["name"] == name);
        found.with_context(|| format!("demo.yaml has no {kind} {name}"))
    }

    fn find_mut(&mut self, kind: &str, name: &str) -> anyhow::Result<&mut Value> {
        let found = self.0.iter_mut().find(|d| d["kind"] == kind && d["metadata"]["name"] == name);
        found.with_context(|| format!("demo.yaml has no {kind} {name}"))
    }

    pub(super) fn set_program_port(&mut self, workload: &str, port: u16) -> anyhow::Result<()> {
        let document = self.find_mut("Workload", workload)?;
        document["spec"]["ports"][0]["port"] = port.into();
        Ok(())
    }

    pub(super) fn set_inbound_port(&mut self, workload: &str, port: u16) -> anyhow::Result<()> {
        let document = self.find_mut("Workload", workload)?;
        document["spec"]["inboundPort"] = port.into();
        Ok(())
    }

    /// This share of stock's callers for v1, the rest for v2.
    pub(super) fn set_split(&mut self, v1: u32) -> anyhow::Result<()> {
        let route = self.find_mut("HTTPRoute", "stock")?;
        let backend = |name: &str, weight: u32| json!({"name": name, "port": 8080, "weight": weight});
        route["spec"]["rules"][0]["backendRefs"] =
            json!([backend("stock-v1", v1), backend("stock-v2", 100 - v1)]);
        Ok(())
    }

    pub(super) fn labels(&self, workload: &str) -> anyhow::Result<BTreeMap<String, String>> {
        let labels = &self.find("Workload", workload)?["metadata"]["labels"];
        Ok(serde_json::from_value(labels.clone())?)
    }

    pub(super) fn service_account(&self, workload: &str) -> anyhow::Result<&str> {
        let account = self.find("Workload", workload)?["spec"]["serviceAccount"].as_str();
        account.with_context(|| format!("Workload {workload} has no serviceAccount"))
    }
}

fn text(document: &Value) -> String {
    format!("---\n{}", remora_xds::write_yaml(document))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_documents_say_the_first_split_and_an_edit_changes_it() {
        let mut documents = Documents::read().unwrap();
        let before = documents.route().unwrap();
        documents.set_split(FIRST_SPLIT).unwrap();
        assert_eq!(documents.route().unwrap(), before);
        documents.set_split(SECOND_SPLIT).unwrap();
        assert_eq!(documents.route().unwrap().matches("weight: 50").count(), 2);
    }
}
