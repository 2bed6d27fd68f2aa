//! What an edge reports, read with nothing taken for granted: an edge may be anybody who got hold of one.

use serde_json::Value;

/// `{"status": {"conditions": [{…}, …], …}, …}`; both may be missing. Whoever gets it may write into each of these objects.
///
/// # Errors
/// What it is instead.
pub fn parse(bytes: &[u8]) -> Result<Value, String> {
    let report: Value = serde_json::from_slice(bytes).map_err(|error| error.to_string())?;
    let fields = report.as_object().ok_or("the report is no object")?;
    match fields.get("status") {
        None | Some(Value::Null) => {}
        Some(Value::Object(status)) => match status.get("conditions") {
            None | Some(Value::Null) => {}
            Some(Value::Array(conditions)) if conditions.iter().all(Value::is_object) => {}
            Some(_) => return Err("the conditions are no list of objects".into()),
        },
        Some(_) => return Err("the status is no object".into()),
    }
    Ok(report)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_could_not_be_written_into_is_refused() {
        for bad in [
            "",
            "[]",
            "5",
            r#"{"status":[]}"#,
            r#"{"status":{"conditions":5}}"#,
            r#"{"status":{"conditions":["x"]}}"#,
        ] {
            assert!(parse(bad.as_bytes()).is_err(), "{bad}");
        }
        for good in ["{}", r#"{"status":null}"#, r#"{"status":{"conditions":[{}]}}"#] {
            assert!(parse(good.as_bytes()).is_ok(), "{good}");
        }
    }
}
