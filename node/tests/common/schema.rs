//! Checks JSON against the committed schemas: as much of JSON Schema as they use, and a failure for whatever more.

use std::path::Path;

use serde_json::Value;

/// Words that say nothing about validity.
const REMARKS: [&str; 4] = ["$schema", "$id", "title", "description"];

/// Checks `object` against `node/schemas/<name>.json`.
#[track_caller]
pub(crate) fn check(name: &str, object: &Value) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("schemas").join(name).with_extension("json");
    let schema = std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let schema: Value = serde_json::from_str(&schema).expect("a schema is JSON");
    if let Some(fault) = fault(&schema, object, "$") {
        panic!("{name}: {fault} in {object:#}");
    }
    // Whatever the schema names is said: nothing is left out where it is null.
    let names = schema["properties"].as_object().expect("a schema of an object").keys();
    let missing: Vec<&String> = names.filter(|key| object.get(key.as_str()).is_none()).collect();
    assert!(missing.is_empty() || name == "error", "{name}: {missing:?} are not in {object:#}");
}

fn fault(schema: &Value, value: &Value, place: &str) -> Option<String> {
    let words = schema.as_object().expect("a schema is an object");
    words.iter().find_map(|(word, rule)| match word.as_str() {
        "type" => (!has_type(rule, value)).then(|| format!("{place} is not {rule}")),
        "const" => (rule != value).then(|| format!("{place} is not {rule}")),
        "enum" => (!rule.as_array()?.contains(value)).then(|| format!("{place} is none of {rule}")),
        "minimum" => (value.as_i64()? < rule.as_i64()?).then(|| format!("{place} is too small")),
        "pattern" => (!fits(rule.as_str()?, value.as_str()?)).then(|| format!("{place} does not fit {rule}")),
        "items" => value.as_array()?.iter().find_map(|item| fault(rule, item, &format!("{place}[]"))),
        "required" => {
            let value = value.as_object()?;
            let missing = rule.as_array()?.iter().find(|key| !key.as_str().is_some_and(|k| value.contains_key(k)))?;
            Some(format!("{place}.{missing} is missing"))
        }
        "properties" => value.as_object()?.iter().find_map(|(key, value)| match rule.get(key) {
            Some(rule) => fault(rule, value, &format!("{place}.{key}")),
            None => Some(format!("{place}.{key} is not in the schema")),
        }),
        "additionalProperties" if *rule == Value::Bool(false) => None,
        remark if REMARKS.contains(&remark) => None,
        other => Some(format!("the checker does not know the word {other}")),
    })
}

fn has_type(rule: &Value, value: &Value) -> bool {
    let is = |name: &Value| match name.as_str().expect("a type is a name") {
        "object" => value.is_object(),
        "array" => value.is_array(),
        "string" => value.is_string(),
        "integer" => value.is_i64() || value.is_u64(),
        "number" => value.is_number(),
        "boolean" => value.is_boolean(),
        "null" => value.is_null(),
        other => panic!("the checker does not know the type {other}"),
    };
    rule.as_array().map_or_else(|| is(rule), |names| names.iter().any(is))
}

/// The patterns that the schemas use, each as what it means.
fn fits(pattern: &str, value: &str) -> bool {
    let bech32 = |text: &str| text.bytes().all(|b| b"023456789acdefghjklmnpqrstuvwxyz".contains(&b));
    let hex = |length| value.len() == length && value.bytes().all(|b| b"0123456789abcdef".contains(&b));
    let after = |prefix: &str| value.strip_prefix(prefix).unwrap_or_default().to_owned();
    match pattern {
        "^[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9:.]+Z$" => is_rfc3339(value),
        "^hf1[02-9ac-hj-np-z]+$" => !after("hf1").is_empty() && bech32(&after("hf1")),
        "^hf1[02-9ac-hj-np-z]{8}$" => after("hf1").len() == 8 && bech32(&after("hf1")),
        "^[0-9a-f]{128}$" => hex(128),
        "^[0-9a-f]{64}$" => hex(64),
        "^did:key:z" => value.starts_with("did:key:z"),
        "^(operator|peer|clock|rule:.+)$" => {
            ["operator", "peer", "clock"].contains(&value) || !after("rule:").is_empty()
        }
        other => panic!("the checker does not know the pattern {other}"),
    }
}

fn is_rfc3339(text: &str) -> bool {
    let shape = |range: std::ops::Range<usize>, allowed: &[u8]| {
        text.as_bytes().get(range).is_some_and(|part| !part.is_empty() && part.iter().all(|b| allowed.contains(b)))
    };
    let digits = b"0123456789";
    let end = text.len().saturating_sub(1);
    text.ends_with('Z')
        && (shape(0..4, digits)
            && shape(4..5, b"-")
            && shape(5..7, digits)
            && shape(7..8, b"-")
            && shape(8..10, digits))
        && (shape(10..11, b"T") && shape(11..end, b"0123456789:."))
}
