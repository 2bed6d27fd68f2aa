//! What each uplink has carried this month and today, and whether its budget is spent.
//!
//! - the tunnel's meter, each second → [`Usage`] by uplink → the store, at most every [`SAVE_EVERY`] and at a stop
//! - the uplinks that there are, and what is spent → the policies that the tunnel and the hub obey; the Node's UplinkBudgetExceeded
//!
//! State: [`Budgets`], behind a lock that is never held over an await; what survives is one row, `uplink/v1/usage`. Months and days begin by
//! the time that the hub told, counted on by CLOCK_BOOTTIME, in UTC: the machine's own clock may say 1970, and without a hub there is next to
//! nothing to count. A row that cannot be read or written is logged; the counting goes on.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use metastore::{Batch, CommitError, ReadError, Store};
use serde::{Deserialize, Serialize};
use time::{Date, Month, OffsetDateTime};
use tunnel::{Carried, Meter, Uplink};

use crate::config::UplinkConfig;

/// Less than the minute that a reset may lose.
const SAVE_EVERY: Duration = Duration::from_secs(55);
/// How often the meter is read, and what a budget may be overrun by.
pub(super) const READ_EVERY: Duration = Duration::from_secs(1);
const ROW: &str = "uplink/v1/usage";

/// What one uplink has carried.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Usage {
    /// Which month that is, counted from year 0; none: nobody has told the time yet.
    period: Option<i32>,
    /// Which day, counted from 1970.
    day: Option<u64>,
    /// Bytes of the month, both ways.
    pub month: u64,
    /// Bytes of the day, both ways.
    pub today: u64,
}

impl Usage {
    fn add(&mut self, bytes: u64) {
        self.month = self.month.saturating_add(bytes);
        self.today = self.today.saturating_add(bytes);
    }

    /// A month or a day may have begun. One that is earlier than the last was named wrongly before: the count goes on under its name.
    fn advance(&mut self, now: Duration, reset_day: u8) {
        let (period, day) = (period(now, reset_day), now.as_secs() / 86_400);
        if self.period.is_some_and(|last| last < period) {
            self.month = 0;
        }
        if self.day.is_some_and(|last| last < day) {
            self.today = 0;
        }
        (self.period, self.day) = (Some(period), Some(day));
    }
}

/// The month that a time since 1970 belongs to, when months begin on a day from 1 to 28: January of year 0 is 0.
fn period(now: Duration, reset_day: u8) -> i32 {
    let seconds = i64::try_from(now.as_secs()).unwrap_or(i64::MAX);
    let date = OffsetDateTime::from_unix_timestamp(seconds).map_or(Date::MAX, OffsetDateTime::date);
    let month = date.year() * 12 + i32::from(u8::from(date.month())) - 1;
    month - i32::from(date.day() < reset_day)
}

/// The day on which the next month begins.
fn end_of(period: i32, reset_day: u8) -> Option<Date> {
    let next = period + 1;
    let month = Month::try_from(u8::try_from(next.rem_euclid(12) + 1).ok()?).ok()?;
    Date::from_calendar_date(next.div_euclid(12), month, reset_day).ok()
}

/// What people and Prometheus see of an uplink.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Seen {
    /// Since the process began.
    pub carried: Carried,
    /// Bytes of the day, both ways.
    pub today: u64,
    /// Bytes of the month, both ways.
    pub month: u64,
    /// Bytes that a month may have.
    pub budget: Option<u64>,
    /// They are spent.
    pub spent: bool,
}

#[derive(Debug, Default)]
struct State {
    usage: BTreeMap<String, Usage>,
    /// The meter at the last look.
    counted: BTreeMap<String, Carried>,
}

/// The uplinks' budgets; clones are the same.
#[derive(Debug, Clone)]
pub struct Budgets {
    config: Arc<Vec<UplinkConfig>>,
    meter: Meter,
    state: Arc<Mutex<State>>,
}

impl Budgets {
    /// With what the last process left.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub fn new(config: &[UplinkConfig], store: &Store) -> Result<Self, ReadError> {
        let row = store.get(ROW)?.map(|bytes| serde_json::from_slice(&bytes));
        let usage = row.unwrap_or_else(|| Ok(BTreeMap::new())).unwrap_or_else(|error| {
            tracing::error!(%error, "what the uplinks have carried cannot be read: it counts from 0");
            BTreeMap::new()
        });
        let state = State {
            usage,
            ..State::default()
        };
        Ok(Self {
            config: Arc::new(config.to_vec()),
            meter: Meter::default(),
            state: Arc::new(Mutex::new(state)),
        })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What the tunnel counts by.
    pub fn meter(&self) -> Meter {
        self.meter.clone()
    }

    fn config(&self, uplink: &str) -> Option<&UplinkConfig> {
        self.config.iter().find(|config| config.name == uplink)
    }

    fn reset_day(&self, uplink: &str) -> u8 {
        let metered = self.config(uplink).and_then(|config| config.metered.as_ref());
        metered.map_or(1, |metered| metered.reset_day)
    }

    fn budget(&self, uplink: &str) -> Option<u64> {
        self.config(uplink)?.metered.as_ref()?.budget()
    }

    fn is_spent(&self, uplink: &str, usage: &Usage) -> bool {
        self.budget(uplink).is_some_and(|budget| usage.month >= budget)
    }

    /// Reads the meter; `now` is the time since 1970 as the hub told it, where it did.
    pub fn look(&self, now: Option<Duration>) {
        let read = self.meter.read();
        let state = &mut *self.state();
        for (uplink, carried) in read {
            let counted = state.counted.entry(uplink.clone()).or_default();
            let more = carried.since(*counted);
            *counted = carried;
            state.usage.entry(uplink).or_default().add(more.total());
        }
        let Some(now) = now else { return };
        for (uplink, usage) in &mut state.usage {
            usage.advance(now, self.reset_day(uplink));
        }
    }

    /// The uplinks with the policies that hold now.
    pub fn apply(&self, uplinks: &[Uplink]) -> Vec<Uplink> {
        let state = self.state();
        let one = |uplink: &Uplink| {
            let spent = state.usage.get(&uplink.name);
            let spent = spent.is_some_and(|usage| self.is_spent(&uplink.name, usage));
            Uplink {
                policy: if spent { uplink.policy.spent() } else { uplink.policy },
                ..uplink.clone()
            }
        };
        uplinks.iter().map(one).collect()
    }

    /// What UplinkBudgetExceeded says; None where no budget is spent.
    pub fn exceeded(&self) -> Option<String> {
        let state = self.state();
        let said: Vec<String> = self
            .config
            .iter()
            .filter_map(|config| {
                let usage = state.usage.get(&config.name)?;
                let metered = config.metered.as_ref().filter(|_| self.is_spent(&config.name, usage))?;
                let until = usage.period.and_then(|period| end_of(period, metered.reset_day));
                let until = until.map_or_else(String::new, |date| format!(" until {date}"));
                Some(format!(
                    "uplink {} has carried its monthly budget of {}: control traffic alone goes over it{until}",
                    config.name, metered.monthly_budget
                ))
            })
            .collect();
        (!said.is_empty()).then(|| said.join("; "))
    }

    /// One uplink.
    pub fn seen(&self, uplink: &str) -> Seen {
        let state = self.state();
        let usage = state.usage.get(uplink).cloned().unwrap_or_default();
        Seen {
            carried: state.counted.get(uplink).copied().unwrap_or_default(),
            today: usage.today,
            month: usage.month,
            budget: self.budget(uplink),
            spent: self.is_spent(uplink, &usage),
        }
    }

    /// What is to be saved, and what was.
    pub fn usage(&self) -> BTreeMap<String, Usage> {
        let mut usage = self.state().usage.clone();
        // Of uplinks that came and went nothing is left but their names.
        usage.retain(|uplink, usage| usage.month > 0 || self.config(uplink).is_some());
        usage
    }

    /// Makes it durable.
    ///
    /// # Errors
    /// When the store cannot be written.
    pub async fn save(store: &Store, usage: &BTreeMap<String, Usage>) -> Result<(), CommitError> {
        let mut batch = Batch::new();
        batch.put(ROW, serde_json::to_vec(usage).expect("a map of numbers is JSON"));
        store.commit(batch).await
    }
}

/// When what was counted is made durable: when it has changed, and not too often.
#[derive(Debug)]
pub(super) struct Saver {
    saved: BTreeMap<String, Usage>,
    at: Duration,
}

impl Saver {
    /// With what the store has; `now` is CLOCK_BOOTTIME.
    pub(super) fn new(saved: BTreeMap<String, Usage>, now: Duration) -> Self {
        Self { saved, at: now }
    }

    /// Whether this is to be saved now. One that fails is tried again with the next.
    pub(super) fn is_due(&mut self, usage: &BTreeMap<String, Usage>, now: Duration) -> bool {
        let due = *usage != self.saved && now.saturating_sub(self.at) >= SAVE_EVERY;
        if due {
            *self = Self::new(usage.clone(), now);
        }
        due
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::MeteredConfig;

    fn at(date: &str) -> Duration {
        let format = &time::format_description::well_known::Rfc3339;
        let time = OffsetDateTime::parse(&format!("{date}T12:00:00Z"), format).unwrap();
        Duration::from_secs(time.unix_timestamp().try_into().unwrap())
    }

    #[test]
    fn a_month_begins_on_its_day() {
        let same = |a, b, day| period(at(a), day) == period(at(b), day);
        assert!(same("2026-11-01", "2026-11-30", 1) && !same("2026-11-30", "2026-12-01", 1));
        assert!(same("2026-11-20", "2026-12-19", 20) && !same("2026-12-19", "2026-12-20", 20));
        assert_eq!(
            period(at("2027-01-05"), 20),
            period(at("2026-12-31"), 20),
            "over the year"
        );
        assert_eq!(
            end_of(period(at("2026-12-31"), 1), 1).unwrap().to_string(),
            "2027-01-01"
        );
        assert_eq!(
            end_of(period(at("2026-12-05"), 20), 20).unwrap().to_string(),
            "2026-12-20"
        );
    }

    #[test]
    fn what_is_counted_begins_anew_with_its_month_and_day_and_never_by_a_step_back() {
        let mut usage = Usage::default();
        usage.add(100);
        // What was carried before anybody told the time is this month's.
        usage.advance(at("2026-11-29"), 1);
        assert_eq!((usage.month, usage.today), (100, 100));
        usage.advance(at("2026-11-30"), 1);
        assert_eq!((usage.month, usage.today), (100, 0));
        usage.add(7);
        usage.advance(at("2026-11-29"), 1);
        assert_eq!((usage.month, usage.today), (107, 7));
        usage.advance(at("2026-12-01"), 1);
        assert_eq!((usage.month, usage.today), (0, 0));
        // A hub whose clock was wrong for a while does not stop the next month.
        usage.advance(at("2099-01-01"), 1);
        usage.add(5);
        usage.advance(at("2026-12-02"), 1);
        assert_eq!(usage.month, 5);
        usage.advance(at("2027-01-01"), 1);
        assert_eq!(usage.month, 0);
    }

    fn lte(budget: &str) -> Vec<UplinkConfig> {
        vec![UplinkConfig {
            name: "lte".to_owned(),
            device: None,
            priority: 0,
            metered: Some(MeteredConfig {
                monthly_budget: budget.to_owned(),
                when_alone: crate::config::Traffic::All,
                ..MeteredConfig::default()
            }),
        }]
    }

    #[tokio::test]
    async fn a_budget_that_is_spent_survives_a_restart_and_ends_with_its_month_or_a_larger_one() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(&dir.path().join("store"), &metastore::Options::default()).unwrap();
        let config = lte("1Ki");
        let uplinks = [Uplink {
            policy: config[0].policy(),
            ..Uplink::new("lte", None)
        }];
        let budgets = Budgets::new(&config, &store).unwrap();
        assert_eq!((budgets.apply(&uplinks), budgets.exceeded()), (uplinks.to_vec(), None));
        budgets.state().usage.entry("lte".to_owned()).or_default().add(1024);
        budgets.look(Some(at("2026-11-29")));
        Budgets::save(&store, &budgets.usage()).await.unwrap();

        let budgets = Budgets::new(&config, &store).unwrap();
        assert_eq!(budgets.apply(&uplinks)[0].policy, config[0].policy().spent());
        assert_eq!(
            budgets.exceeded().unwrap(),
            "uplink lte has carried its monthly budget of 1Ki: control traffic alone goes over it until 2026-12-01"
        );
        let seen = budgets.seen("lte");
        assert_eq!((seen.month, seen.budget, seen.spent), (1024, Some(1024), true));
        let larger = Budgets::new(&lte("2Ki"), &store).unwrap();
        assert_eq!((larger.apply(&uplinks), larger.exceeded()), (uplinks.to_vec(), None));
        // Nobody has told the time: the month stays what it was.
        budgets.look(None);
        assert!(budgets.exceeded().is_some());
        budgets.look(Some(at("2026-12-01")));
        assert_eq!((budgets.apply(&uplinks), budgets.exceeded()), (uplinks.to_vec(), None));
    }

    #[test]
    fn a_reset_loses_no_more_than_a_minute_and_the_store_is_spared() {
        let mut usage = BTreeMap::from([("lte".to_owned(), Usage::default())]);
        let mut saver = Saver::new(usage.clone(), Duration::ZERO);
        let (mut durable, mut saves) = (0, 0);
        for second in 1..=3600 {
            // A byte a second, and half an hour of nothing.
            let quiet = (600..2400).contains(&second);
            usage.get_mut("lte").unwrap().add(u64::from(!quiet));
            if saver.is_due(&usage, Duration::from_secs(second)) {
                (durable, saves) = (usage["lte"].month, saves + 1);
            }
            assert!(usage["lte"].month - durable < 60, "at {second} s");
        }
        assert!(saves <= 1800 / 55 + 2, "{saves}");
    }
}
