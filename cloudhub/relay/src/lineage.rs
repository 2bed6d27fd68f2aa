//! The life of an API's database as a row of points, and whether an edge's place in it is still there.
//!
//! A database that is restored from a backup has lost what came after the backup and gives the same resourceVersions once
//! more, so soon it has counted past what an edge saw. What it cannot have is the points that were written after the backup:
//!
//! - a point has a number, a random id, and, where the API itself wrote it before anything else of a start, the
//!   resourceVersion that this write got
//! - an edge remembers the newest point that it was told, and the highest resourceVersion ([`Place`])
//! - the point is missing, or has another id: the backup is older than the point
//! - a later start began at a resourceVersion that the edge has seen: the backup is older than what the edge saw after the
//!   point. In a life without a backup each start begins above all that was seen before
//!
//! The oldest points are forgotten ([`KEPT`]). Of an edge that was away for longer only the second rule and the marks tell.

use std::fmt;

use wire::proto::{Descent, Place};

/// Points that are kept: about 8 KB. At one an hour, ten days.
const KEPT: usize = 256;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Point {
    number: u64,
    id: u64,
    /// The first resourceVersion of a start; 0: the point is no first write.
    revision: u64,
}

/// The points of one database, the oldest first. As text: a line each of number, id and resourceVersion.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Lineage {
    points: Vec<Point>,
}

impl Lineage {
    /// Reads its text; lines that make no sense are lost points.
    #[must_use]
    pub fn parse(text: &str) -> Self {
        let mut points: Vec<Point> = Vec::new();
        for point in text.lines().filter_map(point) {
            if points.last().is_none_or(|last| last.number < point.number) {
                points.push(point);
            }
        }
        Self { points }
    }

    /// Adds a point with a random id. `revision`: of this write, where it is the first of a start of the API; else 0.
    pub fn grow(&mut self, id: u64, revision: u64) {
        let number = self.number().saturating_add(1);
        let id = id.max(1);
        self.points.push(Point { number, id, revision });
        let surplus = self.points.len().saturating_sub(KEPT);
        self.points.drain(..surplus);
    }

    /// The number of its newest point; 0: it has none.
    #[must_use]
    pub fn number(&self) -> u64 {
        self.points.last().map_or(0, |point| point.number)
    }

    /// The place of one who has seen the database up to `revision`.
    #[must_use]
    pub fn place(&self, revision: u64) -> Place {
        let (number, id) = self.points.last().map_or((0, 0), |point| (point.number, point.id));
        Place { number, id, revision }
    }

    /// Whether this is what became of `earlier` and not of a backup from before its newest point.
    #[must_use]
    pub fn continues(&self, earlier: &Self) -> bool {
        let place = earlier.place(0);
        let here = self.descent(place.number);
        place.number == 0 || here.id == place.id || (here.id == 0 && place.number < self.number())
    }

    /// What it says of point `number`.
    #[must_use]
    pub fn descent(&self, number: u64) -> Descent {
        let here = self.points.iter().find(|point| point.number == number);
        let later = self.points.iter().filter(|point| point.number > number);
        let next = later.map(|point| point.revision).find(|revision| *revision > 0);
        Descent {
            number,
            id: here.map_or(0, |point| point.id),
            next: next.unwrap_or_default(),
        }
    }
}

fn point(line: &str) -> Option<Point> {
    let mut words = line.split(' ');
    let (number, id, revision) = (words.next()?, words.next()?, words.next()?);
    let id = u64::from_str_radix(id, 16).ok().filter(|id| *id > 0)?;
    let (number, revision) = (number.parse().ok()?, revision.parse().ok()?);
    Some(Point { number, id, revision })
}

impl fmt::Display for Lineage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for Point { number, id, revision } in &self.points {
            writeln!(f, "{number} {id:016x} {revision}")?;
        }
        Ok(())
    }
}

/// Why a database at `now`, which says `descent` of the point in `seen`, is not what became of the one that was seen there,
/// up to `revision`.
pub(crate) fn parted(seen: &Place, revision: u64, now: &Place, descent: &Descent) -> Option<String> {
    if seen.number == 0 || now.number == 0 {
        return None;
    }
    let Descent { id, next, .. } = *descent;
    let lost = id == 0 && now.number < seen.number;
    if lost || (id != 0 && id != seen.id) {
        return Some(format!(
            "the hub's API is older than this node: it was restored from a backup of before point {} of its lineage, which this node has seen",
            seen.number
        ));
    }
    let again = next != 0 && next <= revision;
    again.then(|| {
        format!(
            "the hub's API is older than this node: it was restored from a backup and went on at {next}, while this node has seen {revision}"
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn its_text_is_read_back_and_what_makes_no_sense_is_lost() {
        let mut lineage = Lineage::default();
        lineage.grow(7, 0);
        lineage.grow(u64::MAX, 300);
        let text = lineage.to_string();
        assert_eq!(text, "1 0000000000000007 0\n2 ffffffffffffffff 300\n");
        assert_eq!(Lineage::parse(&text), lineage);
        assert_eq!(
            Lineage::parse(&format!("\n1\nx 1 1\n0 0 0\n{text}1 5 5\n2 zz 1\n")),
            lineage
        );
    }

    #[test]
    fn it_is_bounded_and_goes_on_counting() {
        let mut lineage = Lineage::default();
        for id in 1..=1000 {
            lineage.grow(id, id * 10);
        }
        assert_eq!(lineage.number(), 1000);
        assert!(lineage.to_string().len() < 8500, "{}", lineage.to_string().len());
        let (kept, gone) = (lineage.descent(900), lineage.descent(3));
        assert_eq!((kept.id, kept.next), (900, 9010));
        // The first start that is remembered stands in for those that are not.
        assert_eq!((gone.id, gone.next), (0, 7450));
    }

    /// A database: its revision and its lineage. A backup is a copy.
    #[derive(Clone, Default)]
    struct Database {
        revision: u64,
        lineage: Lineage,
    }

    #[derive(Debug, Clone, Copy)]
    enum Step {
        /// So many writes.
        Write(u64),
        /// The API starts: the first write is a point.
        Start,
        /// A hub above a cluster adds a point.
        Point,
        /// The edge is told where the database is.
        Tell,
        /// Copies the database.
        Backup,
        /// Puts the copy back; the API starts.
        Restore,
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            3 => (1..40_u64).prop_map(Step::Write),
            2 => Just(Step::Start),
            1 => Just(Step::Point),
            2 => Just(Step::Tell),
            1 => Just(Step::Backup),
            1 => Just(Step::Restore),
        ]
    }

    impl Database {
        fn start(&mut self, id: u64) {
            self.revision += 1;
            self.lineage.grow(id, self.revision);
        }
    }

    proptest! {
        /// The model knows how many writes each place had behind it that the database has lost; the judgement must agree:
        /// suspect exactly when the edge saw a write that is lost.
        #[test]
        fn suspect_if_and_only_if_what_the_edge_saw_is_lost(steps in prop::collection::vec(step(), 1..60)) {
            let mut database = Database::default();
            database.start(1);
            let mut backup = database.clone();
            let (mut seen, mut lost) = (None::<Place>, false);
            for (id, step) in (2..).zip(steps) {
                match step {
                    Step::Write(writes) => database.revision += writes,
                    Step::Start => database.start(id),
                    Step::Point => {
                        database.revision += 1;
                        database.lineage.grow(id, 0);
                    }
                    Step::Tell if !lost => seen = Some(database.lineage.place(database.revision)),
                    Step::Tell => {}
                    Step::Backup => backup = database.clone(),
                    Step::Restore => {
                        // An edge that saw nothing beyond the backup, which continues it, has lost nothing.
                        let before = seen.is_some_and(|place| place.revision > backup.revision || !has(&backup, &place));
                        lost |= before;
                        database = backup.clone();
                        database.start(id);
                    }
                }
                if let Some(place) = seen {
                    let now = database.lineage.place(database.revision);
                    let judged = parted(&place, place.revision, &now, &database.lineage.descent(place.number));
                    prop_assert_eq!(judged.is_some(), lost, "{:?} at {:?}", place, database.lineage);
                }
            }
        }
    }

    fn has(database: &Database, place: &Place) -> bool {
        database.lineage.descent(place.number).id == place.id
    }

    #[test]
    fn an_api_or_an_edge_without_a_lineage_is_judged_by_marks_alone() {
        let mut lineage = Lineage::default();
        lineage.grow(5, 10);
        let (none, some) = (Lineage::default().place(50), lineage.place(50));
        assert_eq!(parted(&none, 50, &some, &lineage.descent(0)), None);
        assert_eq!(parted(&some, 50, &none, &Lineage::default().descent(1)), None);
    }

    #[test]
    fn a_hub_sees_that_its_api_was_restored_under_it() {
        let mut known = Lineage::default();
        known.grow(1, 0);
        let backup = known.clone();
        known.grow(2, 0);
        let mut another_hub = known.clone();
        another_hub.grow(3, 0);
        assert!(known.continues(&known) && another_hub.continues(&known) && known.continues(&Lineage::default()));
        let mut restored = backup.clone();
        assert!(!restored.continues(&known));
        restored.grow(4, 0);
        assert!(!restored.continues(&known), "also when somebody went on there");
    }
}
