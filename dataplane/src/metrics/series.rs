//! Counters by label set, within bounds. They never go back, and what a scraper sees grow is what was counted.
//!
//! A label set is *shown* once it was given one of the places. When there is none left, a set that has been quiet for
//! [`QUIET_NS`], which is longer than scrapes are apart, is hidden: each scraper has seen its last value, so nothing is
//! moved anywhere. Hidden sets are kept, and go on from their value if they come back. Of too many hidden ones the quietest
//! is forgotten, and only its hash stays: it is never shown again, because it would begin at 0. What finds no place is
//! counted in one further set, "other".

use std::hash::Hash;
use std::sync::Arc;

use hashbrown::{HashSet, HashTable};

/// A set that has not changed for so long may be hidden, nanoseconds.
pub const QUIET_NS: u64 = 600_000_000_000;
/// So many hidden sets are kept for each that may be shown.
const HIDDEN_SHARE: usize = 8;
/// Most sets that are only known not to be shown again.
const FORGOTTEN_MAX: usize = 1 << 18;
/// How soon it is looked again for a place that has become free.
const LOOK_EVERY_NS: u64 = 1_000_000_000;

/// How much is shown at most.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SeriesBounds {
    /// Label sets of each kind.
    pub sets: usize,
    /// Names of far ends.
    pub names: usize,
}

/// Where a label set is counted. It stays good until [`Series::moved`] changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place(u32);

impl Place {
    /// With all others.
    pub const OTHER: Self = Self(u32::MAX);
}

#[derive(Debug)]
struct Entry<L, V> {
    labels: Arc<L>,
    value: V,
    changed_ns: u64,
    shown: bool,
}

/// How many label sets there are.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct SeriesCounts {
    /// That are shown.
    pub shown: u64,
    /// That are kept.
    pub hidden: u64,
    /// That are never shown again.
    pub forgotten: u64,
    /// Most that are shown.
    pub shown_max: u64,
    /// How often something was counted as "other".
    pub folded: u64,
}

/// What a scraper is shown.
#[derive(Debug, Clone)]
pub struct Shown<L, V> {
    /// Each label set and its figures.
    pub sets: Vec<(Arc<L>, V)>,
    /// Figures of all that have no place.
    pub other: V,
    /// How many there are.
    pub counts: SeriesCounts,
}

impl<L, V: Default> Default for Shown<L, V> {
    fn default() -> Self {
        Self { sets: Vec::new(), other: V::default(), counts: SeriesCounts::default() }
    }
}

/// Counters of all label sets of one kind.
#[derive(Debug)]
pub struct Series<L, V> {
    /// Found by the hash of the labels, never of the `Arc` around them: aHash has other ones for it on a nightly Rust.
    places: HashTable<u32>,
    entries: Vec<Entry<L, V>>,
    forgotten: HashSet<u64, ahash::RandomState>,
    hasher: ahash::RandomState,
    other: V,
    shown: usize,
    shown_max: usize,
    folded: u64,
    /// Before this moment there is no place that could become free.
    look_ns: u64,
    moved: u64,
}

impl<L: Eq + Hash, V: Copy + Default> Series<L, V> {
    /// None yet, and so many at most.
    #[must_use]
    pub fn new(shown_max: usize) -> Self {
        Self {
            places: HashTable::new(),
            entries: Vec::new(),
            forgotten: HashSet::default(),
            hasher: ahash::RandomState::new(),
            other: V::default(),
            shown: 0,
            shown_max,
            folded: 0,
            look_ns: 0,
            moved: 0,
        }
    }

    /// The place of a label set, which is given one if there is room.
    pub fn place(&mut self, labels: L, now_ns: u64) -> Place {
        let hash = self.hasher.hash_one(&labels);
        if let Some(place) = self.places.find(hash, |place| *self.entries[*place as usize].labels == labels) {
            return Place(*place);
        }
        let never_again = self.forgotten.contains(&hash);
        if never_again || !self.has_room(now_ns) {
            return Place::OTHER;
        }
        let entry = Entry { labels: Arc::new(labels), value: V::default(), changed_ns: now_ns, shown: true };
        let place = if self.entries.len() < self.shown_max * (1 + HIDDEN_SHARE) {
            self.entries.push(entry);
            self.entries.len() - 1
        } else {
            let Some(place) = self.forget_quietest() else { return Place::OTHER };
            self.entries[place] = entry;
            place
        };
        self.shown += 1;
        let hash_of = |place: &u32| self.hasher.hash_one(&*self.entries[*place as usize].labels);
        self.places.insert_unique(hash, place as u32, hash_of);
        Place(place as u32)
    }

    /// The figures at a place, to be added to.
    pub fn at(&mut self, place: Place, now_ns: u64) -> &mut V {
        let at = place.0 as usize;
        if self.entries.get(at).is_some_and(|entry| !entry.shown) && self.has_room(now_ns) {
            self.entries[at].shown = true;
            self.shown += 1;
        }
        match self.entries.get_mut(at).filter(|entry| entry.shown) {
            Some(entry) => {
                entry.changed_ns = now_ns;
                &mut entry.value
            }
            None => {
                self.folded += 1;
                &mut self.other
            }
        }
    }

    /// Whether it is worth asking again for a place of what is counted as "other".
    #[must_use]
    pub fn may_have_room(&self, now_ns: u64) -> bool {
        self.shown < self.shown_max || now_ns >= self.look_ns
    }

    /// Changes when places are given to other label sets than before.
    #[must_use]
    pub fn moved(&self) -> u64 {
        self.moved
    }

    /// Room for one more, if need be that of the one that has been quiet for longest.
    fn has_room(&mut self, now_ns: u64) -> bool {
        if self.shown < self.shown_max {
            return true;
        }
        if now_ns < self.look_ns {
            return false;
        }
        let shown = self.entries.iter_mut().filter(|entry| entry.shown);
        let Some(quietest) = shown.min_by_key(|entry| entry.changed_ns) else { return false };
        let quiet_at_ns = quietest.changed_ns + QUIET_NS;
        if quiet_at_ns > now_ns {
            self.look_ns = quiet_at_ns.max(now_ns + LOOK_EVERY_NS);
            return false;
        }
        quietest.shown = false;
        self.shown -= 1;
        true
    }

    /// Makes one of the kept places free.
    fn forget_quietest(&mut self) -> Option<usize> {
        if self.forgotten.len() >= FORGOTTEN_MAX {
            return None;
        }
        let hidden = self.entries.iter().enumerate().filter(|(_, entry)| !entry.shown);
        let (place, entry) = hidden.min_by_key(|(_, entry)| entry.changed_ns)?;
        let hash = self.hasher.hash_one(&*entry.labels);
        self.forgotten.insert(hash);
        if let Ok(found) = self.places.find_entry(hash, |other| *other as usize == place) {
            found.remove();
        }
        self.moved += 1;
        Some(place)
    }

    /// A copy of what is shown.
    #[must_use]
    pub fn shown(&self) -> Shown<L, V> {
        let shown = self.entries.iter().filter(|entry| entry.shown);
        Shown {
            sets: shown.map(|entry| (Arc::clone(&entry.labels), entry.value)).collect(),
            other: self.other,
            counts: SeriesCounts {
                shown: self.shown as u64,
                hidden: (self.entries.len() - self.shown) as u64,
                forgotten: self.forgotten.len() as u64,
                shown_max: self.shown_max as u64,
                folded: self.folded,
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use proptest::prelude::*;

    const OTHER: u32 = u32::MAX;

    /// What Prometheus makes of a counter: the sum of its increases. One that appears has grown from 0.
    #[derive(Default)]
    struct Scraper {
        last: BTreeMap<u32, u64>,
        increases: u64,
    }

    impl Scraper {
        fn scrape(&mut self, shown: &Shown<u32, u64>) {
            let sets = shown.sets.iter().map(|(labels, value)| (**labels, *value));
            for (labels, value) in sets.chain([(OTHER, shown.other)]) {
                let last = self.last.insert(labels, value).unwrap_or(0);
                assert!(value >= last, "{labels} has gone back from {last} to {value}");
                self.increases += value - last;
            }
        }
    }

    proptest! {
        /// Each scraper, at its own times, sees all that was counted, whatever comes, goes and returns.
        #[test]
        fn what_a_scraper_sees_grow_is_what_was_counted(
            steps in prop::collection::vec((0u32..60, 1u64..1000, 0u64..200), 1..600),
            every in 1usize..4,
        ) {
            let mut series = Series::<u32, u64>::new(3);
            let mut scrapers = [Scraper::default(), Scraper::default()];
            let (mut now_ns, mut counted) = (1, 0);
            for (number, (labels, amount, seconds)) in steps.into_iter().enumerate() {
                now_ns += seconds * 1_000_000_000;
                let place = series.place(labels, now_ns);
                *series.at(place, now_ns) += amount;
                counted += amount;
                // Scrapes are at most 3 * 199 s apart, and the two are not at the same time.
                for (scraper, offset) in scrapers.iter_mut().zip([0, 1]) {
                    if (number + offset).is_multiple_of(every) {
                        scraper.scrape(&series.shown());
                    }
                }
                let shown = series.shown();
                prop_assert!(shown.sets.len() == shown.counts.shown as usize && shown.sets.len() <= 3);
                prop_assert!(series.entries.len() <= 3 * (1 + HIDDEN_SHARE));
            }
            for scraper in &mut scrapers {
                scraper.scrape(&series.shown());
                prop_assert_eq!(scraper.increases, counted);
            }
        }
    }

    #[test]
    fn a_set_that_comes_back_goes_on_from_its_value_and_one_that_was_forgotten_stays_away() {
        let mut series = Series::<u32, u64>::new(1);
        let count = |series: &mut Series<u32, u64>, labels, now_ns| {
            let place = series.place(labels, now_ns);
            *series.at(place, now_ns) += 1;
            series.shown()
        };
        count(&mut series, 1, 0);
        let shown = count(&mut series, 2, 1);
        assert_eq!((shown.other, shown.counts.folded, *shown.sets[0].0), (1, 1, 1), "the first has the place");
        let shown = count(&mut series, 2, QUIET_NS);
        assert_eq!((*shown.sets[0].0, shown.sets[0].1, shown.other), (2, 1, 1));
        let shown = count(&mut series, 1, 2 * QUIET_NS);
        assert_eq!((*shown.sets[0].0, shown.sets[0].1), (1, 2), "from where it was");
        let before = series.moved();
        for number in 3..20 {
            count(&mut series, number, u64::from(number) * QUIET_NS);
        }
        assert!(series.moved() > before && series.shown().counts.forgotten > 0);
        let shown = count(&mut series, 2, 40 * QUIET_NS);
        assert!(shown.sets.iter().all(|(labels, _)| **labels != 2), "it would begin at 0 again");
    }

    #[test]
    fn counting_allocates_nothing_once_places_are_given() {
        let mut series = Series::<u32, u64>::new(100);
        let places: Vec<Place> = (0..200).map(|labels| series.place(labels, 0)).collect();
        let counted = allocation_counter::measure(|| {
            for now_ns in 1..1000 {
                places.iter().for_each(|place| *series.at(*place, now_ns) += 1);
            }
        });
        assert_eq!(counted.count_total, 0, "{counted:?}");
        assert_eq!(series.shown().other, 100 * 999);
    }
}
