//! Whether workers of a resource class are created while everyone of them would be turned away: the quota is full, say, or
//! a permission is missing. Pure.
//!
//! At a shut door one worker at a time tries, the first in line: less and less often, but at once when another has gone
//! that may have left room. When enough got through in a row, the door is open.

use std::collections::HashMap;

use crate::driver::WorkerKey;
use crate::plan::patience::same_trouble;
use crate::task::{Class, Millis, Outcome};

/// Longest wait between two tries, in milliseconds: for room in a quota, which is looked for at once when a worker ends,
const LONGEST_FOR_ROOM: Millis = 30_000;
/// and for whatever else may be repaired at any time.
const LONGEST: Millis = 10_000;
/// Shortest one.
const SHORTEST: Millis = 10;
/// So many in a row open the door.
const IN_A_ROW: u32 = 16;
/// When another has gone, room is looked for so often, since what a quota counts follows a moment later:
const LOOKS: u32 = 4;
/// first at once, then after this, then after twice this, and so on.
const LOOK_AGAIN: Millis = 250;

/// What came of a creation.
#[derive(Debug)]
pub(crate) enum Answer {
    /// It is there.
    Passed,
    /// So would be every other worker of the class; for so many milliseconds at least.
    TurnedAway { why: Outcome, wait: Millis },
    /// Something that concerns this worker alone.
    Other,
}

/// What a door did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Move {
    None,
    /// It was shut, or is for another reason now.
    Shut,
    Opened,
}

#[derive(Debug)]
struct Door {
    why: Outcome,
    trying: Option<WorkerKey>,
    /// The next may try.
    at: Millis,
    /// In a row.
    turned_away: u32,
    passed: u32,
    /// Looks for room that are left.
    looks: u32,
}

/// The doors of all resource classes.
#[derive(Debug, Default)]
pub(crate) struct Doors {
    shut: HashMap<String, Door>,
}

impl Doors {
    /// A worker of this class may be created now.
    pub(crate) fn admit(&self, class: &str, now: Millis) -> bool {
        self.shut.get(class).is_none_or(|door| door.trying.is_none() && door.at <= now)
    }

    /// A worker is being created. [`Doors::answered`] follows.
    pub(crate) fn tries(&mut self, class: &str, key: &WorkerKey) {
        if let Some(door) = self.shut.get_mut(class) {
            door.trying = Some(key.clone());
        }
    }

    /// What came of it.
    pub(crate) fn answered(&mut self, class: &str, key: &WorkerKey, answer: Answer, now: Millis) -> Move {
        let Some(door) = self.shut.get_mut(class) else {
            let Answer::TurnedAway { why, wait } = answer else { return Move::None };
            let at = now + pause(&why, wait, 0);
            let door = Door { why, trying: None, at, turned_away: 1, passed: 0, looks: 0 };
            self.shut.insert(class.to_owned(), door);
            return Move::Shut;
        };
        // Others were under way when it was shut.
        let tried = door.trying.as_ref() == Some(key);
        if tried {
            door.trying = None;
        }
        match answer {
            Answer::Passed if tried => {
                door.at = now;
                door.turned_away = 0;
                door.passed += 1;
                if door.passed >= IN_A_ROW {
                    self.shut.remove(class);
                    return Move::Opened;
                }
            }
            Answer::TurnedAway { why, wait } if tried => {
                door.passed = 0;
                if door.looks > 0 && why.class == Class::Quota {
                    door.at = now + (LOOK_AGAIN << (LOOKS - door.looks));
                    door.looks -= 1;
                } else {
                    door.at = now + pause(&why, wait, door.turned_away);
                }
                door.turned_away = door.turned_away.saturating_add(1);
                let same = same_trouble(&door.why, &why);
                door.why = why;
                if !same {
                    return Move::Shut;
                }
            }
            Answer::Passed | Answer::TurnedAway { .. } | Answer::Other => {}
        }
        Move::None
    }

    /// A worker has gone: of what a quota counts, there is less now, or in a moment.
    pub(crate) fn room(&mut self) {
        for door in self.shut.values_mut().filter(|door| door.why.class == Class::Quota) {
            door.at = 0;
            door.looks = LOOKS;
        }
    }

    /// Nobody of a class waits any more. Whether its door was shut.
    pub(crate) fn open(&mut self, class: &str) -> bool {
        self.shut.remove(class).is_some()
    }

    /// Why workers of a class are turned away; `None`: the last one was not.
    pub(crate) fn reason(&self, class: &str) -> Option<&Outcome> {
        self.shut.get(class).filter(|door| door.turned_away > 0).map(|door| &door.why)
    }

    /// How many are trying.
    pub(crate) fn trying(&self) -> usize {
        self.shut.values().filter(|door| door.trying.is_some()).count()
    }

    /// When the next may try somewhere where none may now.
    pub(crate) fn next_at(&self, now: Millis) -> Option<Millis> {
        self.shut.values().filter(|door| door.trying.is_none() && door.at > now).map(|door| door.at).min()
    }
}

fn pause(why: &Outcome, wait: Millis, turned_away: u32) -> Millis {
    let longest = if why.class == Class::Quota { LONGEST_FOR_ROOM } else { LONGEST };
    let wait = wait.max(SHORTEST);
    wait.saturating_mul(1 << turned_away.min(16)).min(longest.max(wait))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(index: u32) -> WorkerKey {
        WorkerKey { task_id: "t".into(), index, attempt: 1 }
    }

    fn full(class: Class) -> Answer {
        let why = Outcome { class, exit_code: None, signal: None, message: "full".into() };
        Answer::TurnedAway { why, wait: 3_000 }
    }

    /// A worker tries, if it may, and this is the answer.
    fn try_it(doors: &mut Doors, now: Millis, answer: Answer) -> Option<Move> {
        doors.admit("", now).then(|| {
            doors.tries("", &key(1));
            assert!(!doors.admit("", Millis::MAX) || doors.shut.is_empty(), "one at a time");
            doors.answered("", &key(1), answer, now)
        })
    }

    #[test]
    fn who_is_turned_away_comes_less_and_less_often() {
        let mut doors = Doors::default();
        assert_eq!(try_it(&mut doors, 0, full(Class::Quota)), Some(Move::Shut));
        // Who was under way changes nothing.
        assert_eq!(doors.answered("", &key(7), full(Class::Quota), 10), Move::None);
        assert_eq!(doors.answered("", &key(8), Answer::Passed, 10), Move::None);
        assert!(doors.admit("large", 0), "another class has a door of its own");
        let mut tries = Vec::new();
        for now in (0..120_000).step_by(500) {
            tries.extend(try_it(&mut doors, now, full(Class::Quota)).map(|_| now));
        }
        assert_eq!(tries, [3_000, 9_000, 21_000, 45_000, 75_000, 105_000]);
    }

    #[test]
    fn room_lets_the_next_try_at_once_where_a_quota_is_full() {
        for (class, admits) in [(Class::Quota, true), (Class::Infrastructure, false)] {
            let mut doors = Doors::default();
            try_it(&mut doors, 0, full(class));
            doors.room();
            assert_eq!(doors.admit("", 1), admits);
        }
    }

    #[test]
    fn room_that_is_counted_a_moment_later_is_found() {
        let mut doors = Doors::default();
        let tries = |doors: &mut Doors, from: Millis| {
            let tries = (from..from + 40_000).filter(|now| try_it(doors, *now, full(Class::Quota)).is_some());
            tries.map(|now| now - from).collect::<Vec<_>>()
        };
        tries(&mut doors, 0);
        doors.room();
        assert_eq!(tries(&mut doors, 100_000), [0, 250, 750, 1_750, 3_750, 33_750]);
        // Also if somebody was trying just then.
        doors.tries("", &key(1));
        doors.room();
        doors.answered("", &key(1), full(Class::Quota), 200_000);
        assert_eq!(tries(&mut doors, 200_000)[..3], [250, 750, 1_750]);
    }

    #[test]
    fn another_reason_is_news_and_one_door_does_not_hide_the_next() {
        let mut doors = Doors::default();
        try_it(&mut doors, 0, full(Class::Infrastructure));
        assert_eq!(try_it(&mut doors, 3_000, full(Class::Infrastructure)), Some(Move::None));
        assert_eq!(try_it(&mut doors, 20_000, full(Class::Quota)), Some(Move::Shut));
        assert_eq!(doors.reason("").unwrap().class, Class::Quota);
        doors.answered("large", &key(2), full(Class::Quota), 90_000);
        assert_eq!((doors.next_at(90_000), doors.next_at(93_000)), (Some(93_000), None));
        assert_eq!(try_it(&mut doors, 90_000, Answer::Passed), Some(Move::None));
        assert!(doors.reason("").is_none() && doors.reason("large").is_some());
    }

    #[test]
    fn many_in_a_row_open_it() {
        let mut doors = Doors::default();
        try_it(&mut doors, 0, full(Class::Quota));
        let mut passed = 0;
        while try_it(&mut doors, 5_000, Answer::Passed) == Some(Move::None) {
            passed += 1;
            if passed == 10 {
                assert_eq!(try_it(&mut doors, 5_000, full(Class::Quota)), Some(Move::None));
                assert!(!doors.admit("", 7_999) && doors.admit("", 8_000));
                doors.room();
            }
        }
        assert_eq!(passed, 10 + IN_A_ROW - 1);
        assert!(doors.reason("").is_none() && doors.next_at(0).is_none());
    }

    #[test]
    fn an_answer_about_the_worker_alone_lets_the_next_try() {
        let mut doors = Doors::default();
        try_it(&mut doors, 0, full(Class::Infrastructure));
        assert_eq!(try_it(&mut doors, 3_000, Answer::Other), Some(Move::None));
        assert!(doors.admit("", 3_000));
    }
}
