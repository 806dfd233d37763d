//! Single rules by example; then everything together, with faults, against a model of a driver.

use std::collections::HashMap;

use proptest::prelude::*;

use super::admission::{Admission, Limits, Standing};
use super::*;
use crate::apply::{Decision, Defaults, apply};
use crate::driver::Waiting;
use crate::event::{Direction, GivenSpec, ScaleEvent};

const POLICY: Policy = Policy {
    infrastructure_retries: 2,
    backoff_min: 1_000,
    backoff_max: 8_000,
    keep_ended: 60_000,
    overdue: 40_000,
    stop_again: 40_000,
    patience: Patience { start: Some(5_000), schedule: Some(10_000) },
};

fn outcome(class: Class) -> Outcome {
    Outcome { class, exit_code: None, signal: None, message: class.as_str().to_owned() }
}

fn defaults(max_attempts: u32) -> Defaults {
    Defaults {
        image: String::new(),
        command: vec!["true".into()],
        timeout_seconds: 100,
        max_attempts,
        max_count: 8,
        retention: Millis::MAX / 2,
        pods: None,
    }
}

fn event(task: &str, direction: Direction, count: u32) -> ScaleEvent {
    ScaleEvent { task_id: task.to_owned(), direction, count, spec: GivenSpec::default(), entry: None }
}

fn record(count: u32, max_attempts: u32) -> Record {
    match apply(None, &event("t", Direction::Up, count), &defaults(max_attempts), 0) {
        Decision::Put { record, .. } => record,
        other => panic!("{other:?}"),
    }
}

fn known() -> Facts {
    Facts { complete: true, ..Facts::default() }
}

fn ended(class: Class, at: Millis) -> Fact {
    let mut fact = Fact::new(State::Ended { at, outcome: outcome(class) }, 0);
    fact.started_at = Some(1);
    fact.ended_since = Some(at);
    fact
}

/// Fails the worker's current attempt again and again; the attempts it got in all.
fn attempts(class: Class, max_attempts: u32) -> u32 {
    let mut stored = record(1, max_attempts);
    for round in 0..20 {
        let worker = &stored.workers[0];
        if worker.phase == WorkerPhase::Failed {
            assert_eq!(stored.phase, Phase::Failed);
            return worker.attempt;
        }
        let mut facts = known();
        let now = round * 100_000;
        facts.workers.insert((0, worker.attempt), Box::new(ended(class, now)));
        let (next, weight) = settle(&stored, &facts, &POLICY, now).unwrap();
        assert_eq!(weight, Weight::Hard);
        if next.workers[0].phase == WorkerPhase::Queued {
            let wait = next.workers[0].not_before.unwrap() - now;
            let whole = (1_000 << round).min(8_000);
            assert!((whole / 2..=whole).contains(&wait), "{wait} of {whole}");
            // Not before its time, then ready.
            assert_eq!(actions(&next, &known(), &POLICY, now).wake, next.workers[0].not_before);
            assert!(actions(&next, &known(), &POLICY, now).ready.is_empty());
            assert_eq!(actions(&next, &known(), &POLICY, now + wait).ready, BTreeSet::from([0]));
        }
        stored = next;
    }
    panic!("it never ends");
}

#[test]
fn who_is_to_blame_says_how_often() {
    for class in [Class::Exited, Class::OutOfMemory, Class::Deadline, Class::AgentLost] {
        assert_eq!(attempts(class, 1), 1, "{class:?}");
        assert_eq!(attempts(class, 3), 3, "{class:?}");
    }
    for class in [Class::Evicted, Class::NodeLost, Class::Infrastructure, Class::Stopped, Class::Volume] {
        assert_eq!(attempts(class, 1), 3, "{class:?}");
    }
    for class in [Class::Image, Class::Config, Class::Admission] {
        assert_eq!(attempts(class, 5), 1, "{class:?}");
    }
}

#[test]
fn the_others_come_to_their_own_end() {
    let mut facts = known();
    facts.workers.insert((0, 1), Box::new(ended(Class::Exited, 5)));
    facts.workers.insert((1, 1), Box::new(Fact::new(State::Running, 0)));
    let (stored, _) = settle(&record(2, 1), &facts, &POLICY, 5).unwrap();
    assert_eq!((stored.phase, stored.workers[0].phase), (Phase::Live, WorkerPhase::Failed));
    assert!(actions(&stored, &facts, &POLICY, 5).stop.is_empty());
    facts.workers.insert((1, 1), Box::new(ended(Class::Success, 9)));
    let (stored, _) = settle(&stored, &facts, &POLICY, 9).unwrap();
    assert_eq!((stored.phase, stored.ended_at), (Phase::Failed, Some(9)));
    assert_eq!(stored.error.as_deref(), Some("worker 0 failed: exited"));
    assert_eq!(settle(&stored, &facts, &POLICY, 10), None);
}

#[test]
fn a_missing_worker_means_nothing_before_the_list_and_a_loss_after() {
    let mut stored = record(1, 3);
    stored.workers[0].phase = WorkerPhase::Running;
    assert_eq!(settle(&stored, &Facts::default(), &POLICY, 1), None);
    assert_eq!(actions(&record(1, 1), &Facts::default(), &POLICY, 1), Plan::default());
    let (next, _) = settle(&stored, &known(), &POLICY, 1).unwrap();
    assert_eq!((next.workers[0].attempt, next.workers[0].infrastructure_failures), (2, 1));
}

#[test]
fn an_attempt_that_the_store_forgot_is_adopted() {
    let mut facts = known();
    facts.workers.insert((0, 1), Box::new(ended(Class::Exited, 1)));
    facts.workers.insert((0, 2), Box::new(Fact::new(State::Running, 2)));
    let stored = record(1, 5);
    assert!(actions(&stored, &facts, &POLICY, 3).ready.is_empty());
    let (next, weight) = settle(&stored, &facts, &POLICY, 3).unwrap();
    assert_eq!((next.workers[0].attempt, next.workers[0].phase, weight), (2, WorkerPhase::Running, Weight::Hard));
}

#[test]
fn the_scaler_steps_in_when_the_agent_does_not() {
    let mut facts = known();
    let mut fact = Fact::new(State::Running, 0);
    fact.running_since = Some(1_000);
    fact.started_at = Some(1_000);
    facts.workers.insert((0, 1), Box::new(fact));
    let (stored, weight) = settle(&record(1, 1), &facts, &POLICY, 2_000).unwrap();
    assert_eq!(weight, Weight::Soft);
    let plan = actions(&stored, &facts, &POLICY, 2_000);
    assert_eq!((plan.stop.len(), plan.wake), (0, Some(141_000)));
    assert_eq!(actions(&stored, &facts, &POLICY, 141_000).stop, [(0, 1)]);
    facts.workers.insert((0, 1), Box::new(ended(Class::Stopped, 141_500)));
    let (stored, _) = settle(&stored, &facts, &POLICY, 141_500).unwrap();
    assert_eq!(stored.workers[0].outcome.as_ref().unwrap().class, Class::Deadline);
}

#[test]
fn what_is_left_stays_for_a_while_after_the_result_is_stored() {
    let mut facts = known();
    facts.workers.insert((0, 1), Box::new(ended(Class::Success, 10)));
    let unsettled = record(1, 1);
    assert_eq!(actions(&unsettled, &facts, &POLICY, 1_000_000).remove, []);
    let (stored, _) = settle(&unsettled, &facts, &POLICY, 10).unwrap();
    assert_eq!(actions(&stored, &facts, &POLICY, 10).wake, Some(60_010));
    assert_eq!(actions(&stored, &facts, &POLICY, 60_010).remove, [(0, 1)]);
    facts.workers.get_mut(&(0, 1)).unwrap().gone = true;
    assert_eq!(actions(&stored, &facts, &POLICY, 10).forget, [(0, 1)]);
}

fn waiting(class: Class) -> State {
    State::Created { waiting: Some(Waiting { outcome: outcome(class), hopeless: false, usual: false }) }
}

/// One that waits for this since time 0.
fn waits(class: Class) -> Fact {
    let mut fact = Fact::new(waiting(class), 0);
    fact.waits(0);
    fact
}

/// Deleted before its job began.
fn deleted(fact: &Fact, at: Millis) -> Fact {
    let mut fact = fact.clone();
    fact.state = State::Ended { at, outcome: outcome(Class::Stopped) };
    fact.ended_since = Some(at);
    fact
}

#[test]
fn who_waits_too_long_is_stopped_and_failed_because_of_it() {
    for (class, patience, told) in [
        (Class::Image, 5_000, "image; given up after 5s"),
        (Class::Config, 5_000, "config; given up after 5s"),
        (Class::Volume, 5_000, "volume; given up after 5s"),
        (Class::Infrastructure, 5_000, "infrastructure; given up after 5s"),
        (Class::Unschedulable, 10_000, "unschedulable; given up after 10s"),
    ] {
        let mut facts = known();
        facts.workers.insert((0, 1), Box::new(waits(class)));
        let (stored, weight) = settle(&record(1, 1), &facts, &POLICY, 1).unwrap();
        assert_eq!((weight, &stored.workers[0].waiting), (Weight::Soft, &Some(outcome(class))), "{class:?}");
        let plan = actions(&stored, &facts, &POLICY, patience - 1);
        assert_eq!((&plan.stop[..], plan.wake), (&[][..], Some(patience)), "{class:?}");
        assert_eq!(actions(&stored, &facts, &POLICY, patience).stop, [(0, 1)], "{class:?}");
        let fact = facts.workers.get_mut(&(0, 1)).unwrap();
        fact.stop_sent = Some(patience);
        // While it is being stopped, no other is created.
        assert_eq!(settle(&stored, &facts, &POLICY, patience + 1), None, "{class:?}");
        let fact = deleted(&facts.workers[&(0, 1)], patience + 2);
        facts.workers.insert((0, 1), Box::new(fact));
        let (stored, _) = settle(&stored, &facts, &POLICY, patience + 2).unwrap();
        let worker = &stored.workers[0];
        assert_eq!(worker.outcome.as_ref().map(|why| (why.class, why.message.as_str())), Some((class, told)));
        assert_eq!(worker.waiting, None);
        let again = match blame(class) {
            Blame::Infrastructure => (WorkerPhase::Queued, 2, 1),
            _ => (WorkerPhase::Failed, 1, 0),
        };
        assert_eq!((worker.phase, worker.attempt, worker.infrastructure_failures), again, "{class:?}");
        assert_eq!(worker.job_failures, 0);
    }
}

#[test]
fn the_answer_to_a_stop_may_come_after_its_effect() {
    let mut facts = known();
    let mut fact = waits(Class::Unschedulable);
    fact.busy = true;
    facts.workers.insert((0, 1), Box::new(deleted(&fact, 10_001)));
    let (stored, _) = settle(&record(1, 1), &facts, &POLICY, 10_001).unwrap();
    assert_eq!(stored.workers[0].outcome.as_ref().unwrap().message, "unschedulable; given up after 10s");
    // Vanished without a word.
    let mut fact = Fact::clone(&facts.workers[&(0, 1)]);
    fact.state = State::Ended { at: 10_001, outcome: outcome(Class::NodeLost) };
    fact.gone = true;
    facts.workers.insert((0, 1), Box::new(fact.clone()));
    let (stored, _) = settle(&record(1, 1), &facts, &POLICY, 10_001).unwrap();
    assert_eq!(stored.workers[0].outcome.as_ref().unwrap().class, Class::Unschedulable);
    fact.busy = false;
    facts.workers.insert((0, 1), Box::new(fact));
    let (stored, _) = settle(&record(1, 1), &facts, &POLICY, 10_001).unwrap();
    assert_eq!(stored.workers[0].outcome.as_ref().unwrap().class, Class::NodeLost);
}

#[test]
fn what_never_comes_is_not_waited_for() {
    let mut fact = Fact::new(
        State::Created { waiting: Some(Waiting { outcome: outcome(Class::Image), hopeless: true, usual: false }) },
        7,
    );
    fact.waits(7);
    let mut facts = known();
    facts.workers.insert((0, 1), Box::new(fact.clone()));
    assert_eq!(actions(&record(1, 1), &facts, &POLICY, 7).stop, [(0, 1)]);
    fact.stop_sent = Some(7);
    facts.workers.insert((0, 1), Box::new(deleted(&fact, 9)));
    let (stored, _) = settle(&record(1, 1), &facts, &POLICY, 9).unwrap();
    assert_eq!(stored.error.as_deref(), Some("worker 0 failed: image"));
}

#[test]
fn what_began_in_spite_of_all_is_judged_by_its_own_end() {
    let mut fact = waits(Class::Image);
    fact.stop_sent = Some(5_000);
    fact.started_at = Some(5_001);
    let mut facts = known();
    // The stop came too late for the job not to begin, and ended it.
    facts.workers.insert((0, 1), Box::new(deleted(&fact, 6_000)));
    let (stored, _) = settle(&record(1, 1), &facts, &POLICY, 6_000).unwrap();
    assert_eq!((stored.workers[0].attempt, stored.workers[0].outcome.as_ref().unwrap().class), (2, Class::Stopped));
    // Too late even for that.
    fact.state = State::Ended { at: 6_000, outcome: outcome(Class::Success) };
    facts.workers.insert((0, 1), Box::new(fact));
    let (stored, _) = settle(&record(1, 1), &facts, &POLICY, 6_000).unwrap();
    assert_eq!(stored.phase, Phase::Succeeded);
}

#[test]
fn a_cancelled_worker_did_not_fail_because_of_what_it_waited_for() {
    let mut facts = known();
    facts.workers.insert((0, 1), Box::new(waits(Class::Image)));
    let (mut stored, _) = settle(&record(1, 1), &facts, &POLICY, 1).unwrap();
    stored.phase = Phase::Cancelling;
    stored.workers[0].phase = WorkerPhase::Stopping;
    let fact = deleted(&facts.workers[&(0, 1)], 2);
    facts.workers.insert((0, 1), Box::new(fact));
    let (stored, _) = settle(&stored, &facts, &POLICY, 2).unwrap();
    assert_eq!((stored.phase, stored.workers[0].phase), (Phase::Cancelled, WorkerPhase::Stopped));
}

#[test]
fn what_the_record_says_is_enough_after_a_restart() {
    let mut facts = known();
    facts.workers.insert((0, 1), Box::new(waits(Class::Config)));
    let (stored, _) = settle(&record(1, 1), &facts, &POLICY, 1).unwrap();
    // It is there, ended; nobody knows what it waited for but the record.
    let mut fact = deleted(&facts.workers[&(0, 1)], 9);
    fact.waited = None;
    facts.workers.insert((0, 1), Box::new(fact));
    let (failed, _) = settle(&stored, &facts, &POLICY, 9).unwrap();
    assert_eq!(failed.error.as_deref(), Some("worker 0 failed: config"));
    // It is not there any more.
    let (failed, _) = settle(&stored, &known(), &POLICY, 9).unwrap();
    assert_eq!(failed.error.as_deref(), Some("worker 0 failed: config"));
}

#[test]
fn evicted_while_it_waited_is_evicted() {
    let mut facts = known();
    let mut fact = waits(Class::Image);
    fact.state = State::Ended { at: 3, outcome: outcome(Class::Evicted) };
    fact.ended_since = Some(3);
    facts.workers.insert((0, 1), Box::new(fact));
    let (stored, _) = settle(&record(1, 1), &facts, &POLICY, 3).unwrap();
    assert_eq!((stored.workers[0].attempt, stored.workers[0].outcome.as_ref().unwrap().class), (2, Class::Evicted));
}

#[test]
fn a_deadline_that_passed_before_the_job_began_is_not_its_own() {
    let mut facts = known();
    facts.workers.insert((0, 1), Box::new(Fact { started_at: None, ..ended(Class::Deadline, 3) }));
    let (stored, _) = settle(&record(1, 1), &facts, &POLICY, 3).unwrap();
    let worker = &stored.workers[0];
    assert_eq!((worker.attempt, worker.job_failures, worker.infrastructure_failures), (2, 0, 1));
    let why = worker.outcome.as_ref().unwrap();
    assert_eq!((why.class, why.message.as_str()), (Class::Infrastructure, "the job did not begin in time: deadline"));
    // One that began had its time.
    facts.workers.get_mut(&(0, 1)).unwrap().started_at = Some(1);
    let (stored, _) = settle(&record(1, 1), &facts, &POLICY, 3).unwrap();
    assert_eq!(stored.workers[0].outcome.as_ref().unwrap().class, Class::Deadline);
}

#[test]
fn a_record_changes_with_the_trouble_and_not_with_its_numbers() {
    let mut facts = known();
    let mut see = |stored: &Record, message: &str| {
        let why = Outcome { message: message.to_owned(), ..outcome(Class::Unschedulable) };
        let mut fact =
            Fact::new(State::Created { waiting: Some(Waiting { outcome: why, hopeless: false, usual: false }) }, 0);
        fact.waits(0);
        facts.workers.insert((0, 1), Box::new(fact));
        settle(stored, &facts, &POLICY, 1).map(|(record, _)| record)
    };
    let stored = see(&record(1, 1), "0/3 nodes are available: 3 Insufficient cpu").unwrap();
    assert_eq!(see(&stored, "0/12 nodes are available: 12 Insufficient cpu"), None);
    let other = see(&stored, "0/3 nodes are available: 3 Insufficient memory").unwrap();
    assert!(other.workers[0].waiting.as_ref().unwrap().message.ends_with("memory"));
}

#[test]
fn a_quota_without_room_is_waited_for_and_given_up() {
    let refused = |class, since| Refused { until: since + 20_000, since, why: outcome(class), common: false, times: 1 };
    let mut facts = known();
    facts.refused.insert((0, 1), refused(Class::Quota, 100));
    let (stored, _) = settle(&record(1, 1), &facts, &POLICY, 100).unwrap();
    assert_eq!(stored.workers[0].waiting, Some(outcome(Class::Quota)));
    assert_eq!(settle(&stored, &facts, &POLICY, 10_099), None);
    // While it is tried again, nobody knows.
    facts.creating.insert((0, 1));
    assert_eq!(settle(&stored, &facts, &POLICY, 10_100), None);
    facts.creating.clear();
    let (failed, weight) = settle(&stored, &facts, &POLICY, 10_100).unwrap();
    let worker = &failed.workers[0];
    assert_eq!((weight, worker.attempt, worker.infrastructure_failures, &worker.waiting), (Weight::Hard, 2, 1, &None));
    assert_eq!(worker.outcome.as_ref().unwrap().message, "quota; given up after 10s");
    // An API server that is away comes back.
    facts.refused.insert((0, 1), refused(Class::Infrastructure, 100));
    let (stored, _) = settle(&record(1, 1), &facts, &POLICY, 1_000_000).unwrap();
    assert_eq!((stored.workers[0].attempt, stored.workers[0].phase), (1, WorkerPhase::Queued));
}

// ---- everything together

/// What a driver would have: it starts what it has not started, and never forgets that it did.
#[derive(Default)]
struct Model {
    workers: HashMap<(usize, u32, u32), Sim>,
    started: BTreeSet<(usize, u32, u32)>,
    doubled: Vec<(usize, u32, u32)>,
}

struct Sim {
    state: State,
    stopping: bool,
    began: bool,
    born: Millis,
}

#[derive(Clone, Debug)]
enum Step {
    Event {
        task: usize,
        up: bool,
        count: u32,
    },
    Time(Millis),
    /// Plan everything. `create`: what the driver answers.
    Plan {
        create: u8,
    },
    Run(u8),
    End(u8, Class),
    /// Its job cannot begin.
    Wait(u8, Class, bool),
    /// The scaler is killed between two steps; it knows only what is stored, and lists again later.
    Crash,
    Listed,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let class = prop::sample::select(vec![
        Class::Success,
        Class::Success,
        Class::Exited,
        Class::Evicted,
        Class::Image,
        Class::AgentLost,
    ]);
    let trouble = prop::sample::select(vec![
        Class::Image,
        Class::Unschedulable,
        Class::Volume,
        Class::Config,
        Class::Infrastructure,
    ]);
    let step = prop_oneof![
        3 => (0_usize..3, any::<bool>(), 0_u32..6).prop_map(|(task, up, count)| Step::Event { task, up, count }),
        1 => (1_i64..20_000).prop_map(Step::Time),
        5 => (0_u8..4).prop_map(|create| Step::Plan { create }),
        3 => any::<u8>().prop_map(Step::Run),
        3 => (any::<u8>(), class).prop_map(|(worker, class)| Step::End(worker, class)),
        2 => (any::<u8>(), trouble, any::<bool>()).prop_map(|(worker, class, hopeless)| Step::Wait(worker, class, hopeless)),
        1 => Just(Step::Crash),
        1 => Just(Step::Listed),
    ];
    prop::collection::vec(step, 1..80)
}

struct World {
    now: Millis,
    stored: Vec<Option<Record>>,
    facts: Vec<Facts>,
    admission: Admission,
    model: Model,
    limits: Limits,
}

fn name(task: usize) -> String {
    format!("task-{task}")
}

impl World {
    fn new(limits: Limits) -> Self {
        World {
            now: 0,
            stored: vec![None; 3],
            facts: vec![Facts::default(); 3],
            admission: Admission::new(limits),
            model: Model::default(),
            limits,
        }
    }

    fn step(&mut self, step: &Step) {
        match step {
            Step::Event { task, up, count } => self.event(*task, *up, *count),
            Step::Time(time) => self.now += time,
            Step::Plan { create } => self.plan(*create),
            Step::Run(pick) => self.progress(*pick, None),
            Step::End(pick, class) => self.progress(*pick, Some(*class)),
            Step::Wait(pick, class, hopeless) => self.trouble(*pick, *class, *hopeless),
            Step::Crash => {
                self.facts = vec![Facts::default(); 3];
                self.admission = Admission::new(self.limits);
            }
            Step::Listed => self.list(),
        }
    }

    fn list(&mut self) {
        for facts in &mut self.facts {
            facts.complete = true;
        }
        for ((task, index, attempt), sim) in &self.model.workers {
            see(&mut self.facts[*task], (*index, *attempt), sim, self.now);
        }
    }

    fn event(&mut self, task: usize, up: bool, count: u32) {
        let direction = if up { Direction::Up } else { Direction::Down };
        let settled =
            self.stored[task].as_ref().and_then(|stored| settle(stored, &self.facts[task], &POLICY, self.now));
        let base = settled.map(|(record, _)| record).or_else(|| self.stored[task].clone());
        let before = base.clone();
        if let Decision::Put { record, .. } =
            apply(base.as_ref(), &event(&name(task), direction, count), &defaults(2), self.now)
        {
            assert!(before.is_none_or(|before| before.phase == Phase::Live), "terminal stays terminal");
            self.stored[task] = Some(record);
        }
    }

    /// One round as the controller does it: settle, store, act.
    fn plan(&mut self, create: u8) {
        for task in 0..3 {
            let Some(stored) = &self.stored[task] else { continue };
            let terminal = stored.phase.is_terminal();
            if let Some((record, _)) = settle(stored, &self.facts[task], &POLICY, self.now) {
                assert!(!terminal, "terminal stays terminal");
                assert_eq!(
                    settle(&record, &self.facts[task], &POLICY, self.now),
                    None,
                    "settling twice changes nothing"
                );
                self.stored[task] = Some(record);
            }
            let Some(stored) = &self.stored[task] else { continue };
            let plan = actions(stored, &self.facts[task], &POLICY, self.now);
            for (index, attempt) in plan.stop {
                let fact = self.facts[task].workers.get_mut(&(index, attempt)).unwrap();
                fact.stop_sent = Some(self.now);
                if let Some(sim) = self.model.workers.get_mut(&(task, index, attempt)) {
                    sim.stopping = true;
                }
            }
            for (index, attempt) in plan.remove {
                self.model.workers.remove(&(task, index, attempt));
                self.facts[task].workers.remove(&(index, attempt));
            }
            for attempt in plan.forget {
                self.facts[task].workers.remove(&attempt);
            }
            let facts = &self.facts[task];
            let taken = facts.workers.values().filter(|fact| fact.is_live()).count();
            let (repository, priority) = (["r", "r", "s"][task], stored.spec.priority);
            let standing = Standing { repository, priority, created_at: stored.created_at, ..Standing::default() };
            self.admission.set(&name(task), standing, plan.ready, taken);
        }
        while let Some((id, index)) = self.admission.next(|_| true) {
            let task = id.strip_prefix("task-").unwrap().parse::<usize>().unwrap();
            let attempt = self.stored[task].as_ref().unwrap().workers[index as usize].attempt;
            self.create(task, (index, attempt), create);
        }
    }

    fn create(&mut self, task: usize, attempt: Attempt, answer: u8) {
        let key = (task, attempt.0, attempt.1);
        let facts = &mut self.facts[task];
        match answer {
            // Too busy.
            0 => {
                let since = facts.refused.get(&attempt).map_or(self.now, |refused| refused.since);
                let refused =
                    Refused { until: self.now + 500, since, why: outcome(Class::Quota), common: true, times: 1 };
                facts.refused.insert(attempt, refused);
            }
            // Refused.
            1 => {
                let mut fact =
                    Fact::new(State::Ended { at: self.now, outcome: outcome(Class::Infrastructure) }, self.now);
                fact.ended_since = Some(self.now);
                fact.gone = true;
                facts.workers.insert(attempt, Box::new(fact));
            }
            answer => {
                if !self.model.workers.contains_key(&key) {
                    let state = State::Created { waiting: None };
                    let sim = Sim { state, stopping: false, began: false, born: self.now };
                    self.model.workers.insert(key, sim);
                }
                // With 2 the answer is lost and asked for again later; the watch has told of it.
                facts.refused.remove(&attempt);
                if answer == 2 {
                    let why = outcome(Class::Infrastructure);
                    facts
                        .refused
                        .insert(attempt, Refused { until: self.now, since: self.now, why, common: true, times: 1 });
                }
                facts
                    .workers
                    .entry(attempt)
                    .or_insert_with(|| Box::new(Fact::new(State::Created { waiting: None }, self.now)));
            }
        }
    }

    fn pick(&self, pick: u8) -> Option<(usize, u32, u32)> {
        let mut keys: Vec<_> = self.model.workers.keys().copied().collect();
        keys.sort_unstable();
        (!keys.is_empty()).then(|| keys[usize::from(pick) % keys.len()])
    }

    fn progress(&mut self, pick: u8, class: Option<Class>) {
        if let Some(key) = self.pick(pick) {
            self.advance(key, class);
        }
    }

    fn trouble(&mut self, pick: u8, class: Class, hopeless: bool) {
        let Some(key) = self.pick(pick) else { return };
        let sim = self.model.workers.get_mut(&key).unwrap();
        if matches!(sim.state, State::Created { .. }) {
            let waiting = Waiting { outcome: outcome(class), hopeless, usual: false };
            sim.state = State::Created { waiting: Some(waiting) };
            see(&mut self.facts[key.0], (key.1, key.2), sim, self.now);
        }
    }

    fn advance(&mut self, key: (usize, u32, u32), class: Option<Class>) {
        let now = self.now;
        let sim = self.model.workers.get_mut(&key).unwrap();
        match (&sim.state, class) {
            // Deleted before it began.
            (State::Created { .. }, Some(_)) if sim.stopping => {
                sim.state = State::Ended { at: now, outcome: outcome(Class::Stopped) };
            }
            // What it waits for does not come by itself, but may.
            (State::Created { waiting: Some(_) }, Some(_)) => {}
            (State::Created { .. }, _) => {
                sim.began = true;
                if !self.model.started.insert(key) {
                    self.model.doubled.push(key);
                }
                sim.state = State::Running;
            }
            (State::Running, Some(class)) => {
                let class = if sim.stopping { Class::Stopped } else { class };
                sim.state = State::Ended { at: now, outcome: outcome(class) };
            }
            _ => {}
        }
        let facts = &mut self.facts[key.0];
        see(facts, (key.1, key.2), sim, now);
    }

    fn check(&self) -> Result<(), TestCaseError> {
        prop_assert!(self.model.doubled.is_empty(), "started twice: {:?}", self.model.doubled);
        let live: Vec<_> = self
            .model
            .workers
            .iter()
            .filter(|(_, sim)| matches!(sim.state, State::Created { .. } | State::Running))
            .map(|(key, _)| *key)
            .collect();
        prop_assert!(self.limits.total.is_none_or(|limit| live.len() <= limit), "{live:?}");
        let of = |tasks: &[usize]| live.iter().filter(|key| tasks.contains(&key.0)).count();
        prop_assert!(self.limits.per_repository.is_none_or(|limit| of(&[0, 1]) <= limit && of(&[2]) <= limit));
        for task in 0..3 {
            prop_assert!(self.limits.per_task.is_none_or(|limit| of(&[task]) <= limit));
            let mut indexes: Vec<_> = live.iter().filter(|key| key.0 == task).map(|key| key.1).collect();
            indexes.sort_unstable();
            prop_assert!(indexes.windows(2).all(|pair| pair[0] != pair[1]), "two attempts of one index: {live:?}");
            let stored = self.stored[task].as_ref();
            let ever = stored.map_or(0, |stored| stored.workers.len());
            prop_assert!(indexes.iter().all(|index| (*index as usize) < ever));
            if let Some(stored) = stored.filter(|stored| stored.phase.is_terminal()) {
                prop_assert!(indexes.is_empty(), "{:?} with live workers {indexes:?}", stored.phase);
            }
        }
        Ok(())
    }

    /// With no more faults everything comes to its end, and then nothing is left to be done.
    fn converge(&mut self) -> Result<(), TestCaseError> {
        self.list();
        for _ in 0..400 {
            self.plan(3);
            self.check()?;
            let keys: Vec<_> = self.model.workers.keys().copied().collect();
            for key in keys {
                self.advance(key, Some(Class::Success));
            }
            self.now += 1_000;
        }
        self.now += POLICY.keep_ended;
        self.plan(3);
        for task in 0..3 {
            let Some(stored) = &self.stored[task] else { continue };
            prop_assert!(stored.phase.is_terminal(), "{stored:?} {:?}", self.facts[task]);
            prop_assert_eq!(settle(stored, &self.facts[task], &POLICY, self.now), None);
            prop_assert_eq!(actions(stored, &self.facts[task], &POLICY, self.now), Plan::default());
            prop_assert!(self.facts[task].workers.is_empty());
        }
        prop_assert!(self.model.workers.is_empty());
        prop_assert_eq!(self.admission.taken(), 0);
        for worker in self.stored.iter().flatten().flat_map(|stored| &stored.workers) {
            prop_assert_eq!(&worker.waiting, &None);
            // And what fits into the time that a start has.
            let passing = POLICY.patience.start.unwrap_or(0) / (POLICY.backoff_min / 2).max(1) + 1;
            let bound = i64::from(POLICY.infrastructure_retries) + 1 + passing;
            prop_assert!(i64::from(worker.infrastructure_failures) <= bound, "{worker:?}");
            prop_assert!(worker.job_failures <= 2, "{worker:?}");
        }
        Ok(())
    }
}

fn see(facts: &mut Facts, attempt: Attempt, sim: &Sim, now: Millis) {
    let fact =
        facts.workers.entry(attempt).or_insert_with(|| Box::new(Fact::new(State::Created { waiting: None }, sim.born)));
    fact.state = sim.state.clone();
    fact.waits(now);
    if sim.began {
        fact.started_at = Some(sim.born);
        fact.running_since.get_or_insert(now);
    }
    if matches!(sim.state, State::Ended { .. }) {
        fact.ended_since.get_or_insert(now);
    }
}

proptest! {
    #[test]
    fn nothing_starts_twice_and_everything_ends(
        steps in steps(),
        total in 1_usize..6, per_repository in 1_usize..6, per_task in 1_usize..4,
    ) {
        let limits = Limits { total: Some(total), per_repository: Some(per_repository), per_task: Some(per_task) };
        let mut world = World::new(limits);
        for step in &steps {
            world.step(step);
            world.check()?;
        }
        world.converge()?;
    }
}

#[test]
fn what_cannot_start_is_not_ready() {
    let stored = record(1, 1);
    let ready = |facts: &Facts| actions(&stored, facts, &POLICY, 0).ready.len();
    let mut facts = known();
    assert_eq!(ready(&facts), 1);
    // The store went back to before a later attempt was decided on, and takes no writes.
    facts.workers.insert((0, 2), Box::new(Fact::new(State::Running, 0)));
    assert_eq!(ready(&facts), 0);
}

#[test]
fn an_attempt_that_is_still_being_created_is_not_followed_by_another() {
    let mut facts = known();
    let mut fact = ended(Class::NodeLost, 1);
    fact.gone = true;
    facts.workers.insert((0, 1), Box::new(fact));
    facts.creating.insert((0, 1));
    let (stored, _) = settle(&record(1, 1), &facts, &POLICY, 1).unwrap();
    assert_eq!(stored.workers[0].attempt, 2);
    // The answer is to come, and must not be taken for a new life.
    let plan = actions(&stored, &facts, &POLICY, 100_000);
    assert_eq!((plan.forget, plan.ready.len()), (vec![], 0));
    assert_eq!(orphans(&facts, true, &POLICY, 100_000).forget, []);
    facts.creating.clear();
    let plan = actions(&stored, &facts, &POLICY, 100_000);
    assert_eq!((plan.forget, plan.ready.len()), (vec![(0, 1)], 1));
}
