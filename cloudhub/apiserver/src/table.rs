//! The Table output: what `kubectl get` prints. No state.
//!
//! The columns of a row and their places are described at [`crate::kinds::Row::columns`].

use serde_json::{Value, json};
use time::{Duration, OffsetDateTime};

use crate::kinds::Row;
use crate::object;
use crate::status::Status;

/// How much of each object goes along.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum IncludeObject {
    /// Nothing.
    None,
    /// Its metadata.
    Metadata,
    /// All of it.
    Object,
}

impl IncludeObject {
    /// Reads the query parameter `includeObject`.
    ///
    /// # Errors
    /// 400 for another word.
    pub(crate) fn parse(text: &str) -> Result<Self, Status> {
        match text {
            "None" => Ok(Self::None),
            "" | "Metadata" => Ok(Self::Metadata),
            "Object" => Ok(Self::Object),
            _ => Err(Status::bad_request(format!(
                "Unable to convert to Table as requested: includeObject: Invalid value: {text:?}: must be 'Metadata', 'Object', \
                 'None', or empty"
            ))),
        }
    }
}

/// `metadata` of a list.
#[derive(Debug, Clone, Default)]
pub(crate) struct ListMeta {
    /// Of the list; for one object, its own.
    pub(crate) resource_version: String,
    /// Where the next page begins, or "".
    pub(crate) continue_token: String,
    /// How many objects are left after this page.
    pub(crate) remaining: Option<u64>,
}

impl ListMeta {
    /// As the API writes it.
    pub(crate) fn to_json(&self) -> Value {
        let mut meta = json!({"resourceVersion": self.resource_version});
        if !self.continue_token.is_empty() {
            meta["continue"] = json!(self.continue_token);
        }
        if let Some(remaining) = self.remaining {
            meta["remainingItemCount"] = json!(remaining);
        }
        meta
    }
}

/// What fills a column.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Source {
    Name,
    Age,
    CreatedAt,
    Cell,
}

/// A column where it stands.
#[derive(Debug)]
struct Place {
    name: &'static str,
    kind: &'static str,
    priority: u8,
    source: Source,
}

const NAME: Place = Place {
    name: "Name",
    kind: "string",
    priority: 0,
    source: Source::Name,
};
const AGE: Place = Place {
    name: "Age",
    kind: "string",
    priority: 0,
    source: Source::Age,
};

fn layout(row: &Row) -> Vec<Place> {
    let mut places: Vec<Place> = row
        .columns
        .iter()
        .map(|column| Place {
            name: column.name,
            kind: column.kind,
            priority: column.priority,
            source: match column.name {
                "Name" => Source::Name,
                "Age" => Source::Age,
                "Created At" => Source::CreatedAt,
                _ => Source::Cell,
            },
        })
        .collect();
    if places.iter().any(|p| p.source == Source::Name) {
        return places;
    }
    if places.iter().all(|p| p.source == Source::Cell) {
        let after = places.iter().rposition(|p| p.priority == 0).map_or(0, |at| at + 1);
        places.insert(after, AGE);
    }
    places.insert(0, NAME);
    places
}

impl Place {
    fn definition(&self) -> Value {
        let (format, description) = match self.source {
            Source::Name => ("name", "Name of the object, unique among its kind in its namespace."),
            Source::Age | Source::CreatedAt => ("", "When the server created the object."),
            Source::Cell => ("", ""),
        };
        json!({
            "name": self.name,
            "type": self.kind,
            "format": format,
            "description": description,
            "priority": self.priority,
        })
    }
}

/// A `meta.k8s.io/v1 Table` of `objects`, which are in the row's version. `headers` is false after the first event of a watch.
pub(crate) fn render(
    row: &Row,
    list: &ListMeta,
    objects: impl IntoIterator<Item = Value>,
    include: IncludeObject,
    headers: bool,
) -> Value {
    let places = layout(row);
    let now = object::now();
    let rows: Vec<Value> = objects
        .into_iter()
        .map(|object| {
            let cells = cells(row, &places, &object, now);
            json!({"cells": cells, "object": included(object, include)})
        })
        .collect();
    let definitions: Option<Vec<Value>> = headers.then(|| places.iter().map(Place::definition).collect());
    json!({
        "kind": "Table",
        "apiVersion": "meta.k8s.io/v1",
        "metadata": list.to_json(),
        "columnDefinitions": definitions,
        "rows": rows,
    })
}

/// The cells of one object.
pub(crate) fn cells_of(row: &Row, object: &Value) -> Vec<Value> {
    cells(row, &layout(row), object, object::now())
}

fn cells(row: &Row, places: &[Place], object: &Value, now: OffsetDateTime) -> Vec<Value> {
    let created = object::text(object, "/metadata/creationTimestamp");
    let mut own = row.strategy.cells(object).into_iter();
    let cell = |place: &Place| match place.source {
        Source::Name => json!(object::name(object)),
        Source::Age => json!(age(created, now)),
        Source::CreatedAt => json!(created),
        Source::Cell => own.next().unwrap_or_default(),
    };
    places.iter().map(cell).collect()
}

/// As much of an object as goes along with its row.
pub(crate) fn included(object: Value, include: IncludeObject) -> Value {
    match include {
        IncludeObject::None => Value::Null,
        IncludeObject::Metadata => partial(object),
        IncludeObject::Object => object,
    }
}

/// The `PartialObjectMetadata` of an object.
pub(crate) fn partial(mut object: Value) -> Value {
    let metadata = object["metadata"].take();
    json!({"kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1", "metadata": metadata})
}

/// How long ago a time was, as `kubectl get` prints it: `5s`, `2m3s`, `3h5m`, `2d4h`, `5y23d`.
pub(crate) fn age(since: &str, now: OffsetDateTime) -> String {
    match object::parse_time(since) {
        Some(since) => human(now - since),
        None => "<unknown>".into(),
    }
}

/// A span in at most two units, the smaller one only while it matters.
pub(crate) fn human(span: Duration) -> String {
    let seconds = span.whole_seconds();
    let (minutes, hours) = (seconds / 60, seconds / 3600);
    let (days, years) = (hours / 24, hours / 24 / 365);
    match seconds {
        // Clocks differ a little: what is just ahead is now.
        ..-1 => "<invalid>".into(),
        -1 => "0s".into(),
        0..120 => format!("{seconds}s"),
        120..600 => two(minutes, "m", seconds % 60, "s"),
        600..10_800 => format!("{minutes}m"),
        10_800..28_800 => two(hours, "h", minutes % 60, "m"),
        28_800..172_800 => format!("{hours}h"),
        172_800..691_200 => two(days, "d", hours % 24, "h"),
        691_200..63_072_000 => format!("{days}d"),
        63_072_000..252_288_000 => two(years, "y", days % 365, "d"),
        _ => format!("{years}y"),
    }
}

fn two(large: i64, large_unit: &str, small: i64, small_unit: &str) -> String {
    if small == 0 {
        format!("{large}{large_unit}")
    } else {
        format!("{large}{large_unit}{small}{small_unit}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kinds;

    fn names(group: &str, plural: &str) -> Vec<&'static str> {
        let row = kinds::row(group, "v1", plural).unwrap();
        layout(row).iter().map(|p| p.name).collect()
    }

    #[test]
    fn ages_are_short_and_grow_coarser() {
        for (seconds, shown) in [
            (-5, "<invalid>"),
            (-1, "0s"),
            (0, "0s"),
            (119, "119s"),
            (120, "2m"),
            (123, "2m3s"),
            (600, "10m"),
            (10_799, "179m"),
            (10_800, "3h"),
            (11_100, "3h5m"),
            (28_800, "8h"),
            (172_799, "47h"),
            (172_800 + 4 * 3600, "2d4h"),
            (8 * 86_400, "8d"),
            (730 * 86_400, "2y"),
            ((5 * 365 + 23) * 86_400, "5y23d"),
            (9 * 365 * 86_400, "9y"),
        ] {
            assert_eq!(human(Duration::seconds(seconds)), shown);
        }
        let now = object::parse_time("2025-01-01T00:00:05Z").unwrap();
        assert_eq!(age("2025-01-01T00:00:00Z", now), "5s");
        assert_eq!(age("", now), "<unknown>");
    }

    #[test]
    fn name_comes_first_and_age_before_the_wide_columns() {
        assert_eq!(names("", "configmaps"), ["Name", "Data", "Age"]);
        assert_eq!(names("", "serviceaccounts"), ["Name", "Age"]);
        assert_eq!(
            names("scheduling.k8s.io", "priorityclasses"),
            ["Name", "Value", "Global-Default", "Age", "PreemptionPolicy"]
        );
    }

    #[test]
    fn a_row_may_place_them_itself() {
        assert_eq!(names("", "nodes")[..5], ["Name", "Status", "Roles", "Age", "Version"]);
        assert_eq!(names("rbac.authorization.k8s.io", "roles"), ["Name", "Created At"]);
        let events = names("", "events");
        assert_eq!(events.first(), Some(&"Last Seen"));
        assert_eq!(events.last(), Some(&"Name"));
        assert!(!events.contains(&"Age"));
    }

    #[test]
    fn a_table_has_as_many_cells_as_columns() {
        for row in kinds::rows() {
            let object = json!({"metadata": {"name": "a", "creationTimestamp": "2025-01-01T00:00:00Z"}});
            let table = render(row, &ListMeta::default(), [object], IncludeObject::Metadata, true);
            let columns = table["columnDefinitions"].as_array().unwrap();
            let cells = table["rows"][0]["cells"].as_array().unwrap();
            assert_eq!(columns.len(), cells.len(), "{}", row.plural);
            assert!(cells.iter().all(|c| !c.is_null()), "{}: {cells:?}", row.plural);
            assert_eq!(table["rows"][0]["object"]["kind"], "PartialObjectMetadata");
        }
    }

    #[test]
    fn a_list_says_where_it_goes_on() {
        let list = ListMeta {
            resource_version: "7".into(),
            continue_token: "next".into(),
            remaining: Some(3),
        };
        let row = kinds::row("", "v1", "configmaps").unwrap();
        let object = json!({"metadata": {"name": "a"}, "data": {"k": "v"}});
        let table = render(row, &list, [object.clone()], IncludeObject::Object, false);
        assert_eq!(
            table["metadata"],
            json!({"resourceVersion": "7", "continue": "next", "remainingItemCount": 3})
        );
        assert_eq!(table["columnDefinitions"], json!(null));
        assert_eq!(table["rows"][0]["cells"], json!(["a", 1, "<unknown>"]));
        assert_eq!(table["rows"][0]["object"], object);
        assert!(IncludeObject::parse("All").is_err());
    }
}
