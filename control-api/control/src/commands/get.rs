//! `remora get`.

use std::process::ExitCode;
use std::time::SystemTime;

use anyhow::Context;
use clap::Args;
use http::Method;
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde_json::{Value, json};

use super::table::{duration, table};
use super::{ServerArgs, delete, run};
use crate::client::{Refused, Server};
use crate::clock::age;
use crate::kinds::{KINDS, Kind};

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  remora get services
  remora get httproute checkout -o yaml
  remora get svc -A -o wide
  remora get workloads -l app=shop
  remora get instances
  remora get all

Kinds: services (svc), workloads (wl), endpointslices, httproutes, grpcroutes, tcproutes, tlsroutes, referencegrants,
trafficpolicies (tp), authenticationpolicies (authn), authorizationpolicies (authz),
ratelimitpolicies (rl), faultpolicies (fault), instances, and all of them (all). Exit status: 0, 1 when a document is
not there or the control plane cannot be asked, 2 for wrong arguments.")]
pub(crate) struct GetArgs {
    /// A kind and names of it, or KIND/NAME
    #[arg(value_name = "KIND NAME", required = true)]
    names: Vec<String>,
    /// Namespace
    #[arg(short, long, default_value = "default")]
    namespace: String,
    /// All namespaces
    #[arg(short = 'A', long)]
    all_namespaces: bool,
    /// Only documents with these labels: name=value, name!=value
    #[arg(short = 'l', long, value_name = "LABELS")]
    selector: Option<String>,
    /// A table, a table with more, or the documents
    #[arg(short, long, value_enum, default_value = "table")]
    output: Output,
    #[command(flatten)]
    server: ServerArgs,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Output {
    Table,
    Wide,
    Yaml,
    Json,
    Name,
}

pub(crate) fn get(args: &GetArgs) -> ExitCode {
    run("get", 1, async {
        let server = args.server.open()?;
        match args.names.as_slice() {
            [one] if one == "instances" || one == "instance" => instances(&server, args).await,
            [one] if one == "all" => {
                let mut found: Vec<(&Kind, Vec<Value>)> = Vec::new();
                for kind in &KINDS {
                    found.push((kind, list(&server, kind, args).await?));
                }
                found.retain(|(_, items)| !items.is_empty());
                let any = !found.is_empty();
                show_all(&found, args);
                if !any {
                    nothing(args);
                }
                Ok(0)
            }
            [one] if !one.contains('/') => {
                let kind = Kind::meant(one).map_err(anyhow::Error::msg)?;
                let items = list(&server, kind, args).await?;
                if items.is_empty() {
                    nothing(args);
                } else {
                    show(kind, &items, args);
                }
                Ok(0)
            }
            words => named(&server, words, args).await,
        }
    })
}

fn nothing(args: &GetArgs) {
    match args.output {
        Output::Json | Output::Yaml => print_documents(&[], args.output),
        _ if args.all_namespaces => eprintln!("No resources found"),
        _ => eprintln!("No resources found in {} namespace.", args.namespace),
    }
}

async fn list(server: &Server, kind: &Kind, args: &GetArgs) -> anyhow::Result<Vec<Value>> {
    let mut path = if args.all_namespaces {
        format!("{}/{}", kind.root(), kind.plural)
    } else {
        format!("{}/namespaces/{}/{}", kind.root(), args.namespace, kind.plural)
    };
    if let Some(labels) = &args.selector {
        path.push_str(&format!("?labelSelector={}", utf8_percent_encode(labels, NON_ALPHANUMERIC)));
    }
    let answer = server.call(Method::GET, &path, None).await?;
    Ok(answer["items"].as_array().cloned().unwrap_or_default())
}

async fn named(server: &Server, words: &[String], args: &GetArgs) -> anyhow::Result<u8> {
    let mut status = 0;
    let mut found: Vec<(&Kind, Vec<Value>)> = Vec::new();
    for (kind, name) in delete::documents(words)? {
        let path = format!("{}/namespaces/{}/{}/{name}", kind.root(), args.namespace, kind.plural);
        match server.call(Method::GET, &path, None).await {
            Ok(document) => match found.last_mut() {
                Some((last, items)) if *last == kind => items.push(document),
                _ => found.push((kind, vec![document])),
            },
            Err(error) if error.is::<Refused>() => {
                eprintln!("{error}");
                status = 1;
            }
            Err(error) => return Err(error),
        }
    }
    show_all(&found, args);
    Ok(status)
}

/// Documents of several kinds: tables one below the other, or all of them as one text.
fn show_all(found: &[(&Kind, Vec<Value>)], args: &GetArgs) {
    if matches!(args.output, Output::Json | Output::Yaml) && !found.is_empty() {
        let all: Vec<_> = found.iter().flat_map(|(_, items)| items).cloned().collect();
        return print_documents(&all, args.output);
    }
    for (number, (kind, items)) in found.iter().enumerate() {
        if number > 0 && args.output != Output::Name {
            println!();
        }
        show(kind, items, args);
    }
}

fn show(kind: &Kind, items: &[Value], args: &GetArgs) {
    match args.output {
        Output::Json | Output::Yaml => print_documents(items, args.output),
        Output::Name => {
            for item in items {
                println!("{}/{}", kind.qualified(), text(&item["metadata"]["name"]));
            }
        }
        Output::Table | Output::Wide => {
            let (mut head, mut rows) = columns(kind, items, args.output == Output::Wide);
            if args.all_namespaces {
                head.insert(0, "NAMESPACE");
                for (row, item) in rows.iter_mut().zip(items) {
                    row.insert(0, text(&item["metadata"]["namespace"]));
                }
            }
            print!("{}", table(&head, &rows));
        }
    }
}

fn print_documents(items: &[Value], output: Output) {
    if output == Output::Yaml {
        let texts: Vec<_> = items.iter().map(remora_xds::write_yaml).collect();
        print!("{}", texts.join("---\n"));
        return;
    }
    let value = match items {
        [one] => one.clone(),
        many => json!({"apiVersion": "v1", "kind": "List", "items": many}),
    };
    // A Value is always JSON.
    println!("{}", serde_json::to_string_pretty(&value).unwrap_or_default());
}

fn text(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Null => String::new(),
        other => other.to_string(),
    }
}

fn joined(value: &Value, each: impl Fn(&Value) -> String) -> String {
    let all: Vec<_> = value.as_array().into_iter().flatten().map(each).filter(|t| !t.is_empty()).collect();
    if all.is_empty() { "<none>".into() } else { all.join(",") }
}

/// The columns that say something of a kind, then its conditions and age.
fn columns(kind: &Kind, items: &[Value], wide: bool) -> (Vec<&'static str>, Vec<Vec<String>>) {
    let own: &[&'static str] = match kind.name {
        "Service" => &["PORTS", "SELECTOR"],
        "Workload" => &["ADDRESS", "PORTS", "ACCOUNT"],
        "EndpointSlice" | "ReferenceGrant" => &[],
        "TrafficPolicy" | "AuthenticationPolicy" => &["TARGETS"],
        "RateLimitPolicy" => &["TARGETS", "LIMITS"],
        "FaultPolicy" => &["TARGETS", "FAULTS"],
        "AuthorizationPolicy" => &["TARGETS", "ACTION", "RULES"],
        _ => &["PARENTS", "RULES"],
    };
    let mut head = vec!["NAME"];
    head.extend(own);
    head.extend(["ACCEPTED", "PROGRAMMED", "AGE"]);
    if wide {
        head.extend(["VERSION", "MESSAGE"]);
    }
    let row = |item: &Value| {
        let mut row = vec![text(&item["metadata"]["name"])];
        row.extend(own.iter().map(|column| cell(column, &item["spec"])));
        row.extend([condition(item, "Accepted", "status"), condition(item, "Programmed", "status")]);
        let created = item["metadata"]["creationTimestamp"].as_str();
        row.push(
            created.and_then(|t| age(t, SystemTime::now())).map_or_else(|| "<unknown>".into(), duration),
        );
        if wide {
            row.push(text(&item["metadata"]["resourceVersion"]));
            let refused = condition(item, "RefusedBy", "message");
            let why = if refused.is_empty() { condition(item, "Accepted", "message") } else { refused };
            row.push(why.lines().next().unwrap_or_default().to_owned());
        }
        row
    };
    (head, items.iter().map(row).collect())
}

fn cell(column: &str, spec: &Value) -> String {
    let port = |port: &Value| text(&port["port"]);
    let name = |reference: &Value| text(&reference["name"]);
    let number = |list: &Value| list.as_array().map_or(0, Vec::len).to_string();
    match column {
        "PORTS" => joined(&spec["ports"], port),
        "SELECTOR" => {
            let pairs = spec["selector"].as_object().into_iter().flatten();
            let all: Vec<_> = pairs.map(|(name, value)| format!("{name}={}", text(value))).collect();
            if all.is_empty() { "<none>".into() } else { all.join(",") }
        }
        "ADDRESS" => text(&spec["address"]),
        "ACCOUNT" => spec["serviceAccount"].as_str().unwrap_or("default").to_owned(),
        "PARENTS" => joined(&spec["parentRefs"], name),
        "ACTION" => spec["action"].as_str().unwrap_or("Allow").to_owned(),
        "RULES" => number(&spec["rules"]),
        "LIMITS" => number(&spec["limits"]),
        "FAULTS" => number(&spec["faults"]),
        _ => joined(&spec["targetRefs"], name),
    }
}

pub(super) fn condition(item: &Value, kind: &str, field: &str) -> String {
    let conditions = item["status"]["conditions"].as_array().into_iter().flatten();
    { conditions }.find(|c| c["type"] == kind).map(|c| text(&c[field])).unwrap_or_default()
}

async fn instances(server: &Server, args: &GetArgs) -> anyhow::Result<u8> {
    let answer = server.call(Method::GET, "/remora/v1/instances", None).await?;
    let items = answer["items"].as_array().context("the control plane answers something else")?;
    let shown: Vec<_> = items
        .iter()
        .filter(|item| args.all_namespaces || item["metadata"]["namespace"] == args.namespace.as_str())
        .cloned()
        .collect();
    if shown.is_empty() {
        nothing(args);
        return Ok(0);
    }
    if matches!(args.output, Output::Json | Output::Yaml) {
        print_documents(&shown, args.output);
        return Ok(0);
    }
    let row = |item: &Value| {
        let (metadata, spec) = (&item["metadata"], &item["spec"]);
        vec![
            text(&metadata["namespace"]),
            text(&metadata["name"]),
            text(&spec["health"]),
            text(&spec["workload"]["address"]),
            joined(&spec["workload"]["ports"], |port| text(&port["port"])),
            joined(&spec["services"], text),
        ]
    };
    let head = ["NAMESPACE", "NAME", "HEALTH", "ADDRESS", "PORTS", "SERVICES"];
    print!("{}", table(&head, &shown.iter().map(row).collect::<Vec<_>>()));
    Ok(0)
}
