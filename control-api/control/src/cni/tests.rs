use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::time::Instant;

use super::chain::{self, Standing};
use super::config;
use super::environment::{self, Command};
use super::failure::{Code, Failure};
use super::folders::Folders;
use super::pod::{Decision, decide};
use super::rewrites::Rewrites;
use super::token::{Answer, Files, Question, Token};

fn call(variables: &[(&str, &str)]) -> Result<environment::Call, Failure> {
    environment::read(&|name| {
        variables.iter().find(|(known, _)| *known == name).map(|(_, value)| (*value).to_owned())
    })
}

const ADD: [(&str, &str); 4] = [
    ("CNI_COMMAND", "ADD"),
    ("CNI_CONTAINERID", "a1"),
    ("CNI_NETNS", "/run/netns/a"),
    ("CNI_IFNAME", "eth0"),
];

fn with<'a>(name: &'a str, value: &'a str) -> Vec<(&'a str, &'a str)> {
    let mut all: Vec<_> = ADD.into_iter().filter(|(known, _)| *known != name).collect();
    all.push((name, value));
    all
}

#[test]
fn variables_are_those_of_the_specification() {
    let read =
        call(&with("CNI_ARGS", "IgnoreUnknown=1;K8S_POD_NAMESPACE=shop;K8S_POD_NAME=web-0;K8S_POD_UID=u;X="))
            .unwrap();
    let pod = read.pod.unwrap();
    assert_eq!((read.command, read.netns.unwrap().to_str()), (Command::Add, Some("/run/netns/a")));
    assert_eq!((pod.namespace.as_str(), pod.name.as_str(), pod.uid.as_deref()), ("shop", "web-0", Some("u")));
    assert_eq!(call(&ADD).unwrap().pod, None, "podman has no pods of Kubernetes");
    for command in ["GC", "STATUS", "VERSION"] {
        assert!(call(&[("CNI_COMMAND", command)]).is_ok(), "{command} is about no container");
    }
    assert!(
        call(&[("CNI_COMMAND", "DEL"), ("CNI_CONTAINERID", "a"), ("CNI_IFNAME", "eth0")]).is_ok(),
        "its namespace may be gone"
    );
    let end = with("CNI_COMMAND", "DEL").into_iter().chain([("CNI_ARGS", "K8S_POD_NAME")]);
    assert_eq!(call(&end.collect::<Vec<_>>()).unwrap().pod, None, "whatever is said of the pod");
}

#[test]
fn wrong_variables_are_named() {
    for (variables, named) in [
        (vec![], "CNI_COMMAND"),
        (with("CNI_COMMAND", "add"), "CNI_COMMAND"),
        (with("CNI_CONTAINERID", ""), "CNI_CONTAINERID"),
        (with("CNI_CONTAINERID", "-a"), "CNI_CONTAINERID"),
        (with("CNI_CONTAINERID", "a/b"), "CNI_CONTAINERID"),
        (with("CNI_NETNS", ""), "CNI_NETNS"),
        (with("CNI_IFNAME", "a/b"), "CNI_IFNAME"),
        (with("CNI_IFNAME", "sixteen-letters-"), "CNI_IFNAME"),
        (with("CNI_IFNAME", ".."), "CNI_IFNAME"),
        (with("CNI_ARGS", "K8S_POD_NAME"), "CNI_ARGS"),
        (with("CNI_ARGS", "K8S_POD_NAME=web"), "CNI_ARGS"),
        (with("CNI_ARGS", "K8S_POD_NAME=../secrets/a;K8S_POD_NAMESPACE=b"), "CNI_ARGS"),
    ] {
        let failure = call(&variables).unwrap_err();
        assert_eq!(failure.code, Code::Environment, "{variables:?}");
        assert!(failure.msg.contains(named), "{variables:?}: {failure}");
    }
}

fn configuration(more: &Value) -> String {
    let mut all =
        json!({"cniVersion": "1.1.0", "name": "pods", "type": "remora-cni", "kubeconfig": "/etc/k"});
    for (name, value) in more.as_object().unwrap() {
        all[name] = value.clone();
    }
    all.to_string()
}

#[test]
fn a_configuration_is_read_whole() {
    let read = |more: Value, command| config::read(&configuration(&more), command);
    let previous = json!({"cniVersion": "1.1.0", "ips": [{"address": "10.0.0.2/24"}]});
    let all = json!({"prevResult": previous, "excludeNamespaces": ["kube-system"], "runtimeConfig": {}, "cni.dev/valid-attachments": []});
    let config = read(all, Command::Add).unwrap();
    assert_eq!(config.previous, Some(previous));
    assert_eq!(config.exclude_namespaces, ["kube-system"]);
    assert_eq!(config.kubeconfig.to_str(), Some("/etc/k"));
    for version in config::VERSIONS {
        assert_eq!(read(json!({"cniVersion": version}), Command::Add).unwrap().version, version);
    }
    for (more, command, code) in [
        (json!({"cniVersion": "0.2.0"}), Command::Add, Code::Version),
        (json!({"cniVersion": "2.0.0"}), Command::Add, Code::Version),
        (json!({"cniVersion": 1}), Command::Add, Code::Version),
        (json!({"cniVersion": "0.3.1"}), Command::Check, Code::Version),
        (json!({"cniVersion": "1.0.0"}), Command::Gc, Code::Version),
        (json!({"cniVersion": "1.0.0"}), Command::Status, Code::Version),
        (json!({"excludedNamespaces": []}), Command::Add, Code::Field),
        (json!({"excludeNamespaces": "kube-system"}), Command::Add, Code::Config),
        (json!({"excludeNamespaces": [1]}), Command::Add, Code::Config),
        (json!({"kubeconfig": "k"}), Command::Add, Code::Config),
        (json!({"name": ""}), Command::Add, Code::Config),
        (json!({"prevResult": []}), Command::Add, Code::Config),
    ] {
        assert_eq!(read(more.clone(), command).unwrap_err().code, code, "{more} {command:?}");
    }
    assert_eq!(config::read("{", Command::Add).unwrap_err().code, Code::Decode);
    assert_eq!(config::read("[]", Command::Add).unwrap_err().code, Code::Decode);
    assert_eq!(
        config::read("{}", Command::Add).unwrap_err().code,
        Code::Version,
        "no version is the first one"
    );
}

#[test]
fn an_end_asks_for_the_version_alone() {
    for text in [
        r#"{"cniVersion": "1.1.0"}"#,
        r#"{"cniVersion": "1.1.0", "name": "", "kubeconfig": 1, "excludeNamespaces": 1, "prevResult": 1, "later": 1}"#,
    ] {
        for command in [Command::Del, Command::Gc] {
            assert_eq!(config::accept(text, command), Ok(()), "{text}");
        }
        assert!(config::read(text, Command::Add).is_err(), "{text}");
    }
    let code = |text: &str, command| config::accept(text, command).unwrap_err().code;
    assert_eq!(code(r#"{"cniVersion": "2.0.0"}"#, Command::Del), Code::Version);
    assert_eq!(code(r#"{"cniVersion": "1.0.0"}"#, Command::Gc), Code::Version);
    assert_eq!(code("{", Command::Del), Code::Decode);
}

#[test]
fn errors_have_the_words_of_the_specification() {
    let failure = Failure::new(Code::Later, "a", "b");
    assert_eq!(failure.json("1.0.0"), json!({"cniVersion": "1.0.0", "code": 11, "msg": "a", "details": "b"}));
}

fn pod(annotations: &Value) -> Value {
    json!({
        "metadata": {"name": "web", "uid": "u", "annotations": annotations},
        "spec": {"initContainers": [{"name": "remora-proxy"}], "containers": [{"name": "web"}]},
    })
}

#[test]
fn the_injector_says_what_is_to_be_done() {
    let said =
        json!({"remora.dev/cni": r#"["--inbound-port","15006","--exclude-inbound-ports","22,15021"]"#});
    let rules = |words: &[&str]| Ok(Decision::Rules(words.iter().map(|word| (*word).to_owned()).collect()));
    let all = ["init", "--inbound-port", "15006", "--exclude-inbound-ports", "22,15021"];
    assert_eq!(decide(&pod(&said), Some("u")), rules(&all));
    assert_eq!(decide(&pod(&said), None), rules(&all));
    let mut classic = pod(&said);
    classic["spec"] = json!({"containers": [{"name": "remora-proxy"}]});
    assert_eq!(decide(&classic, Some("u")), rules(&all));

    let flagged = json!({"remora.dev/cni": r#"["--capture-dns","--inbound-port","15006"]"#});
    let all = ["init", "--capture-dns", "--inbound-port", "15006"];
    assert_eq!(decide(&pod(&flagged), None), rules(&all), "an option without a value");

    let left = |pod: &Value| matches!(decide(pod, Some("u")), Ok(Decision::Leave(_)));
    let mut copied = pod(&said);
    copied["spec"] = json!({"containers": [{"name": "web"}]});
    assert!(left(&copied), "an annotation without a sidecar");
    assert!(left(&pod(&json!({}))) && left(&pod(&Value::Null)), "init or none");
    let mut mirror = pod(&json!({"kubernetes.io/config.mirror": "m"}));
    mirror["metadata"]["uid"] = "of the API server".into();
    assert!(left(&mirror));
}

#[test]
fn what_cannot_be_known_is_no_decision() {
    assert_eq!(decide(&pod(&json!({})), Some("another")).unwrap_err().code, Code::Later);
    for wrong in [
        "",
        "{}",
        "[1]",
        r#"["--inbound-port"]"#,
        r#"["--clean","x"]"#,
        r#"["--exclude-uids","0"]"#,
        r#"["--no-verify","--inbound-port"]"#,
        r#"["--capture-dns","true"]"#,
        r#"["--capture-dns","--inbound-port"]"#,
    ] {
        let failure = decide(&pod(&json!({"remora.dev/cni": wrong})), Some("u")).unwrap_err();
        assert_eq!(failure.code, Code::Annotation, "{wrong}");
    }
    let old = pod(&json!({"remora.dev/interception": "cni"}));
    assert_eq!(decide(&old, Some("u")).unwrap_err().code, Code::Annotation);
}

fn list() -> Value {
    json!({"name": "pods", "cniVersion": "1.0.0", "disableCheck": true, "plugins": [{"type": "bridge", "a": {"b": [1]}}, {"type": "portmap"}]})
}

#[test]
fn the_plugin_is_last_and_once() {
    let entry = chain::entry("/etc/k".as_ref(), &["kube-system".into()]);
    let once = chain::with(&list(), &entry).unwrap();
    assert_eq!(
        once["plugins"][2],
        json!({"type": "remora-cni", "kubeconfig": "/etc/k", "excludeNamespaces": ["kube-system"]})
    );
    assert_eq!(chain::with(&once, &entry).unwrap(), once);
    assert!(chain::has(&once) && !chain::has(&list()));
    assert!(chain::is_last(&once) && !chain::is_last(&list()) && !chain::is_last(&json!({"plugins": []})));
    assert_eq!(chain::without(&once), Some(list()), "what was there stays as it was");
    assert_eq!(chain::without(&list()), None);
    // An older one, and a plugin that came behind it.
    let mut moved = once.clone();
    moved["plugins"] = json!([{"type": "bridge", "a": {"b": [1]}}, {"type": "remora-cni", "kubeconfig": "/old"}, {"type": "portmap"}]);
    assert_eq!(chain::with(&moved, &entry).unwrap(), once);
    assert!(chain::has(&moved) && !chain::is_last(&moved));
    // What the plugin itself reads of it.
    let mut alone = once["plugins"][2].clone();
    alone["cniVersion"] = "1.0.0".into();
    alone["name"] = "pods".into();
    assert!(config::read(&alone.to_string(), Command::Add).is_ok());
}

#[test]
fn what_is_no_list_is_refused() {
    let entry = chain::entry("/etc/k".as_ref(), &[]);
    for (wrong, why) in [
        (json!({"type": "bridge", "cniVersion": "1.0.0"}), "no list"),
        (json!({"plugins": [], "cniVersion": "1.0.0"}), "no list"),
        (json!({"plugins": [{"type": "bridge"}], "cniVersion": "0.2.0"}), "0.2.0"),
        (json!({"plugins": [{"type": "bridge"}]}), "0.1.0"),
    ] {
        assert!(chain::with(&wrong, &entry).unwrap_err().contains(why), "{wrong}");
    }
    let several =
        json!({"plugins": [{"type": "bridge"}], "cniVersion": "1.2.0", "cniVersions": ["1.1.0", "1.2.0"]});
    assert!(chain::with(&several, &entry).is_ok());
}

#[test]
fn a_list_that_others_write_is_noticed() {
    let (start, second) = (Instant::now(), Duration::from_secs(1));
    let mut rewrites = Rewrites::default();
    for number in 0..4_u32 {
        assert!(!rewrites.are_many(start + second * number), "{number}: as at the start of a node");
        rewrites.add(start + second * number);
    }
    assert!(rewrites.are_many(start + second * 3) && rewrites.are_many(start + second * 59));
    assert!(!rewrites.are_many(start + second * 60), "the first is forgotten");
    rewrites.add(start + second * 60);
    assert!(rewrites.are_many(start + second * 60), "it goes on");
    assert!(!rewrites.are_many(start + second * 61));
}

fn folders(at: &Path) -> Folders {
    Folders { bin_dir: at.into(), net_dir: at.into() }
}

#[test]
fn the_first_list_is_in_force() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let found = || folders(folder.path()).network().map(|found| found.map(|network| network.file));
    assert!(matches!(found(), Ok(None)));
    // Passed over: broken, each with what belongs in the other kind of file, and what is none of them.
    std::fs::write(at("05-broken.conflist"), "{").unwrap();
    std::fs::write(at("10-a.conf"), list().to_string()).unwrap();
    std::fs::write(at("10-b.json"), list().to_string()).unwrap();
    let alone = json!({"cniVersion": "1.0.0", "name": "pods", "type": "bridge"}).to_string();
    std::fs::write(at("10-c.conflist"), &alone).unwrap();
    std::fs::write(at("10-d.conflist.bak"), list().to_string()).unwrap();
    assert!(matches!(found(), Ok(None)));
    std::fs::write(at("30-pods.conflist"), list().to_string()).unwrap();
    assert_eq!(found().unwrap(), Some(at("30-pods.conflist")));
    std::fs::write(at("20-pods.conflist"), list().to_string()).unwrap();
    assert_eq!(found().unwrap(), Some(at("20-pods.conflist")));
    std::fs::write(at("15-alone.conf"), &alone).unwrap();
    assert!(found().unwrap_err().to_string().contains("15-alone.conf has one plugin"));
}

/// The network's own installer at the same moment.
#[test]
fn what_others_write_meanwhile_is_not_lost() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("10-pods.conflist");
    std::fs::write(&file, list().to_string()).unwrap();
    let network = folders(folder.path()).network().unwrap().unwrap();
    let ours = chain::with(&network.list, &chain::entry("/etc/k".as_ref(), &[])).unwrap();
    std::fs::write(&file, "another one").unwrap();
    assert!(!network.write(&ours).unwrap());
    assert_eq!(std::fs::read_to_string(&file).unwrap(), "another one");
    std::fs::remove_file(&file).unwrap();
    assert!(!network.write(&ours).unwrap() && !file.exists());
    std::fs::write(&file, list().to_string()).unwrap();
    assert!(network.write(&ours).unwrap());
    assert!(chain::has(&folders(folder.path()).network().unwrap().unwrap().list));
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1, "nothing is left beside");
}

#[test]
fn what_is_gone_or_going_is_told_from_what_is_not_said() {
    let object = |metadata: Value| Ok(json!({"metadata": metadata}));
    for asked in [chain::standing, chain::namespace_standing] {
        assert_eq!(asked(object(json!({"name": "remora-cni"}))), Ok(Standing::Stands));
        assert_eq!(asked(object(json!({"deletionTimestamp": "2026-01-01T00:00:00Z"}))), Ok(Standing::Gone));
        assert_eq!(asked(Err((Some(404), "no".into()))), Ok(Standing::Gone));
        let unknown = (Some(401), "no".to_owned());
        assert_eq!(asked(Err(unknown.clone())), Err(unknown), "another token may say");
        for status in [None, Some(500), Some(429)] {
            assert_eq!(asked(Err((status, "why".into()))), Ok(Standing::Unknown("why".into())));
        }
    }
    let forbidden = || Err((Some(403), "no".to_owned()));
    assert_eq!(chain::standing(forbidden()), Err((Some(403), "no".to_owned())));
    assert_eq!(chain::namespace_standing(forbidden()), Ok(Standing::Stands), "it decides nothing");
}

#[test]
fn a_kubeconfig_is_one() {
    let text = chain::kubeconfig("https://10.96.0.1:443", "QQ==", "a-token");
    let read: kube::config::Kubeconfig = serde_json::from_str(&text).unwrap();
    assert_eq!(read.current_context.as_deref(), Some("remora-cni"));
    assert_eq!(read.clusters[0].cluster.as_ref().unwrap().server.as_deref(), Some("https://10.96.0.1:443"));
    assert!(chain::is_for(&text, "https://10.96.0.1:443", "QQ=="), "whatever its token");
    assert!(!chain::is_for(&text, "https://10.96.0.2:443", "QQ=="));
    assert!(!chain::is_for(&text, "https://10.96.0.1:443", "QQ"));
    assert!(!chain::is_for("", "https://10.96.0.1:443", "QQ=="), "it is not there");
}

#[test]
fn a_token_is_bound_to_no_pod() {
    let request = chain::token_request(Duration::from_secs(86400));
    assert_eq!(request["spec"], json!({"expirationSeconds": 86400}), "no boundObjectRef");
    let answer = |status: Value| json!({"spec": {"expirationSeconds": 3600}, "status": status});
    assert_eq!(
        chain::granted(&answer(json!({"token": "t", "expirationTimestamp": "2026-01-01T00:00:00Z"}))),
        Ok(("t".into(), Duration::from_secs(3600))),
        "shorter than what was asked for"
    );
    for wrong in
        [answer(json!({})), answer(json!({"token": ""})), json!({"status": {"token": "t"}}), json!({})]
    {
        assert!(chain::granted(&wrong).is_err(), "{wrong}");
    }
}

const PAUSE: Duration = Duration::from_secs(30);

/// What the node has after a look at `found`, with the installer's `own`.
fn looked(token: &mut Token, own: &str, found: &str) -> String {
    let files = Files {
        own: own.into(),
        granted: token.granted().map(str::to_owned),
        found: found.into(),
        fits: !found.is_empty(),
    };
    let Some(text) = token.wanted(files) else { return found.into() };
    token.wrote(text.clone());
    text
}

#[test]
fn a_token_is_replaced_before_it_ends_and_when_it_is_not_known() {
    let mut now = Instant::now();
    let mut token = Token::default();
    assert_eq!((token.due(now), token.wakes()), (None, None), "nothing was looked at");
    assert_eq!(looked(&mut token, "own", ""), "own", "better than none");
    assert_eq!(token.due(now), Some(Question::Token("own".into())));
    token.answered(Answer::Token(Ok(("granted".into(), 40 * PAUSE))), now, PAUSE);
    assert_eq!(token.due(now), None);
    assert_eq!(looked(&mut token, "own", "own"), "granted");
    // It is tried now and then, and renewed when a quarter of its life is over.
    assert_eq!(token.wakes(), Some(now + PAUSE));
    now += PAUSE;
    assert_eq!(token.due(now), Some(Question::Known("granted".into())));
    token.answered(Answer::Known("granted".into(), true), now, 20 * PAUSE);
    assert_eq!((token.due(now), token.wakes()), (None, Some(now + 9 * PAUSE)));
    assert_eq!(token.due(now + 9 * PAUSE), Some(Question::Token("own".into())));
    assert_eq!(looked(&mut token, "other", "granted"), "granted", "good for a while");
    assert_eq!(looked(&mut token, "other", "another's"), "another's", "as good");
    assert_eq!(token.wrong(), None);

    token.answered(Answer::Known("another's".into(), false), now, PAUSE);
    assert!(token.wrong().unwrap().contains("does not take the token"), "{token:?}");
    assert_eq!(looked(&mut token, "other", "another's"), "other");
    assert_eq!(token.wrong(), None);
    assert_eq!(token.due(now), Some(Question::Token("other".into())), "at once");
    token.answered(Answer::Token(Err("of a/b: no".into())), now, PAUSE);
    assert_eq!(token.wrong().unwrap(), "there is no new token of a/b: no");
    assert_eq!((token.due(now), token.wakes()), (None, Some(now + PAUSE)));
    assert_eq!(looked(&mut token, "third", "other"), "third", "it is followed");
}

/// Where a token cannot be written, no more of them are asked for; and one of a short life is good for a while.
#[test]
fn a_token_is_asked_for_once() {
    let now = Instant::now();
    let mut token = Token::default();
    looked(&mut token, "own", "own");
    token.answered(Answer::Token(Ok(("granted".into(), Duration::ZERO))), now, PAUSE);
    assert_eq!(token.due(now), None);
    assert_eq!(token.due(now + 2 * PAUSE), Some(Question::Known("own".into())));
    looked(&mut token, "own", "own");
    assert_eq!(token.due(now), None);
    assert_eq!(token.due(now + PAUSE), Some(Question::Token("own".into())));
}

/// As where it was written, and that was not told; or where the same one comes again.
#[test]
fn a_token_that_the_node_has_already_is_renewed_in_time() {
    let now = Instant::now();
    let mut token = Token::default();
    looked(&mut token, "own", "same");
    token.answered(Answer::Token(Ok(("same".into(), 40 * PAUSE))), now, PAUSE);
    assert_eq!(looked(&mut token, "own", "same"), "same");
    assert_eq!(token.granted(), None, "nothing is left to be written");
    assert_eq!(token.due(now + 9 * PAUSE), Some(Question::Known("same".into())));
    assert_eq!(token.due(now + 10 * PAUSE), Some(Question::Token("own".into())));
    // What is dead is not kept because it comes again.
    token.answered(Answer::Known("same".into(), false), now, PAUSE);
    token.answered(Answer::Token(Ok(("same".into(), 40 * PAUSE))), now, PAUSE);
    assert_eq!(looked(&mut token, "own", "same"), "own");
}
