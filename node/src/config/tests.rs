//! Precedence, origins, refusals, and that the documented file says what the table says.

use std::io::Write;

use super::*;
use crate::control::api::ErrorCode;

const DOCUMENTED: &str = include_str!("../../../config/handfast.toml");

fn file(text: &str) -> (tempfile::NamedTempFile, ConfigFile) {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(text.as_bytes()).unwrap();
    let named = ConfigFile::Named(file.path().to_path_buf());
    (file, named)
}

fn load(text: &str, environment: &[(&str, &str)], flags: &[(&'static str, &str)]) -> Result<Config, ConfigError> {
    let (_kept, file) = file(text);
    let environment: Vec<_> = environment.iter().map(|(name, value)| ((*name).into(), (*value).into())).collect();
    let flags: Vec<_> =
        flags.iter().map(|(key, value)| Flag { key, typed: "--flag", values: vec![(*value).into()] }).collect();
    Config::load(&file, &environment, &flags)
}

fn value(config: &Config, key: &str) -> String {
    config.shown().into_iter().find(|shown| shown.key == key).unwrap().value.to_string()
}

#[test]
fn the_documented_file_says_every_default() {
    let (_kept, documented) = file(DOCUMENTED);
    let config = Config::load(&documented, &[], &[]).unwrap();
    let default = Config::default();
    for (said, meant) in config.shown().into_iter().zip(default.shown()) {
        assert_eq!(said.value, meant.value, "{}", said.key);
        assert!(matches!(config.origin(said.key), Origin::File { .. }), "{} is not documented", said.key);
        assert_eq!(meant.origin, "default");
    }
}

#[test]
fn the_nearer_source_wins_and_is_named() {
    let text = "key_exchange = \"x25519\"\n\n[limits]\npending_total = 1\npending_per_source = 2\n";
    let environment = [("HANDFAST_LIMITS_PENDING_TOTAL", "10"), ("HANDFAST_POLICY_ACCEPT_ALL", "true")];
    let config = load(text, &environment, &[("policy.accept_all", "false")]).unwrap();
    let check = |key: &str, expected: &str, origin: &str| {
        assert_eq!(value(&config, key), expected, "{key}");
        let found = config.origin(key).to_string();
        assert!(found.ends_with(origin), "{key} is from {found}");
    };
    check("limits.pending_per_source", "2", ":5");
    check("limits.pending_total", "10", "$HANDFAST_LIMITS_PENDING_TOTAL");
    check("policy.accept_all", "false", "--flag");
    check("limits.keep_alive_s", "10", "default");
}

#[test]
fn lists_are_read_from_files_and_from_words() {
    let ids = [1, 2].map(|seed| handfast_protocol::SecretKey::from_seed(&[seed; 32]).peer_id());
    let text = format!("listen = [\"127.0.0.1:1\", \"[::1]:2\"]\n[policy]\nallow = [\"{}\", \"{}\"]", ids[0], ids[1]);
    let from_file = load(&text, &[], &[]).unwrap();
    assert_eq!(from_file.policy_allow, ids);
    assert_eq!(from_file.listen.len(), 2);
    let words = format!("{} , {},", ids[0].to_hex(), ids[1].to_did());
    let from_words = load("", &[("HANDFAST_POLICY_ALLOW", &words)], &[("listen", "127.0.0.1:1,[::1]:2")]).unwrap();
    assert_eq!(from_words.policy_allow, ids);
    assert_eq!(from_words.listen, from_file.listen);
    assert_eq!(load("", &[("HANDFAST_ADVERTISE", "")], &[]).unwrap().advertise, []);
}

#[test]
fn a_bad_value_is_fatal_and_says_where_and_what_is_allowed() {
    let check = |text: &str, line: usize, parts: &[&str]| {
        let refused = load(text, &[], &[]).unwrap_err();
        assert_eq!(refused.code(), ErrorCode::Usage);
        let message = refused.to_string();
        assert!(message.contains(&format!(":{line}: ")), "{message}");
        assert!(parts.iter().all(|part| message.contains(part)), "{message}");
    };
    check("\n[limits]\npending_total = 0", 3, &["limits.pending_total", "0", "1 to 1000000"]);
    check("[limits]\n\npending_total = -1", 3, &["-1", "1 to 1000000"]);
    check("[limits]\npending_total = 9_999_999", 2, &["9999999"]);
    check("[limits]\npending_total = \"64\"", 2, &["\"64\""]);
    check("[limits]\npending_total = 1.5", 2, &["a TOML float"]);
    check("dial_local_addresses = \"true\"", 1, &["true or false"]);
    check("listen = []", 1, &["1 to 8 addresses"]);
    check("listen = \"[::]:1\"", 1, &["a list of"]);
    check("listen = [\"localhost:1\"]", 1, &["localhost:1"]);
    check("listen = [4433]", 1, &["a TOML array"]);
    check("advertise = [\"0.0.0.0:1\"]", 1, &["unspecified"]);
    check("key_exchange = \"rsa\"", 1, &["x25519mlkem768"]);
    check("[policy]\nallow = [\"hf1abc\"]", 2, &["whole ids"]);
    check("[log]\nfilter = \"handfast=loud\"", 2, &["a filter such as"]);
    check("[limits]\nkeep_alive_s = 15", 2, &["less than half", "(30)"]);
    check("[limits]\nidle_timeout_s = 20", 2, &["less than half", "(10)"]);
    check("limits = 3", 1, &["there is no setting `limits`"]);
    check("listn = [\"[::]:1\"]", 1, &["there is no setting `listn`"]);
    check("[polcy]\nallow = []", 1, &["there is no setting `polcy`"]);
    check("[policy]\nalow = []", 2, &["there is no setting `policy.alow`"]);
    check("\nlisten = [\"\n", 2, &[]);
    check("[log]\nfilter = 1\nfilter = 2", 3, &[]);
}

#[test]
fn bad_words_name_their_variable_or_flag() {
    let from_environment = load("", &[("HANDFAST_LIMITS_KEEP_ALIVE_S", "soon")], &[]).unwrap_err().to_string();
    assert!(from_environment.starts_with("$HANDFAST_LIMITS_KEEP_ALIVE_S: "), "{from_environment}");
    let from_flag = load("", &[], &[("listen", "nowhere")]).unwrap_err().to_string();
    assert!(from_flag.starts_with("--flag: "), "{from_flag}");
    let environment = [("HANDFAST_LISTN", "x"), ("HANDFAST_LISTEN", "x"), ("HANDFAST_CONFIG", "x")];
    let environment = environment.map(|(name, value)| (name.to_owned(), value.to_owned()));
    assert_eq!(unknown_variables(&environment), ["HANDFAST_LISTN"]);
}

#[test]
fn only_the_usual_file_may_be_absent() {
    let outer = tempfile::tempdir().unwrap();
    let directory = DataDir::create(&outer.path().join("data")).unwrap();
    let none = |_: &str| None;
    let usual = ConfigFile::choose(None, none, Some(&directory));
    assert_eq!(usual, ConfigFile::Usual(directory.config()));
    assert_eq!(Config::load(&usual, &[], &[]).unwrap(), Config::default());

    let absent = outer.path().join("absent.toml");
    let from_variable = |name: &str| (name == "HANDFAST_CONFIG").then(|| absent.clone().into_os_string());
    let named = ConfigFile::choose(None, from_variable, Some(&directory));
    assert_eq!(named, ConfigFile::Named(absent.clone()));
    let flag = Path::new("other.toml");
    assert_eq!(ConfigFile::choose(Some(flag), from_variable, None), ConfigFile::Named(flag.into()));
    assert_eq!(ConfigFile::choose(None, none, None), ConfigFile::None);
    let refused = Config::load(&named, &[], &[]).unwrap_err();
    assert!(matches!(refused, ConfigError::Unreadable { .. }));
    assert_eq!(refused.code(), ErrorCode::Failure);
}
