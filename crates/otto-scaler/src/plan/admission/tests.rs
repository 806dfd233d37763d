use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;

fn ready(indexes: impl IntoIterator<Item = u32>) -> BTreeSet<u32> {
    indexes.into_iter().collect()
}

fn standing(repository: &str, priority: i32, created_at: Millis) -> Standing<'_> {
    Standing { repository, priority, created_at, ..Standing::default() }
}

fn drain(admission: &mut Admission) -> Vec<(String, u32)> {
    std::iter::from_fn(|| admission.next(|_| true)).collect()
}

#[test]
fn priority_then_age() {
    let mut admission = Admission::new(Limits { total: Some(4), ..Limits::default() });
    admission.set("young", standing("", 0, 2_000), ready([0]), 0);
    admission.set("old", standing("", 0, 1_000), ready([0, 1]), 0);
    admission.set("important", standing("", 5, 3_000), ready([0, 1]), 0);
    let order = drain(&mut admission);
    let order: Vec<_> = order.iter().map(|(task, index)| (task.as_str(), *index)).collect();
    assert_eq!(order, [("important", 0), ("important", 1), ("old", 0), ("old", 1)]);
    admission.set("old", standing("", 0, 1_000), ready([]), 1);
    assert_eq!(admission.next(|_| true), Some(("young".into(), 0)));
}

#[test]
fn nobody_waits_for_ever() {
    let mut admission = Admission::new(Limits { total: Some(1), ..Limits::default() });
    admission.set("patient", standing("", 0, 0), ready([0]), 0);
    admission.set("important", standing("", 1, STEP + 1), ready([0]), 0);
    assert_eq!(admission.next(|_| true), Some(("patient".into(), 0)));
}

#[test]
fn a_full_repository_blocks_no_other() {
    let mut admission = Admission::new(Limits { total: Some(10), per_repository: Some(1), per_task: Some(2) });
    admission.set("a", standing("r", 9, 0), ready(0..5), 0);
    admission.set("b", standing("r", 9, 0), ready(0..5), 0);
    admission.set("c", standing("s", 0, 0), ready(0..5), 0);
    admission.set("d", standing("", 0, 0), ready(0..5), 0);
    let order = drain(&mut admission);
    assert_eq!(order.iter().filter(|(task, _)| task == "a" || task == "b").count(), 1);
    assert_eq!(order.iter().filter(|(task, _)| task == "c").count(), 1);
    // No repository: only the limit of the task.
    assert_eq!(order.iter().filter(|(task, _)| task == "d").count(), 2);
    // A place becomes free.
    admission.set("a", standing("r", 9, 0), ready(1..5), 0);
    assert_eq!(drain(&mut admission).len(), 1);
}

proptest! {
    /// Against a plain model that looks at everything each time.
    #[test]
    fn as_the_plain_model(
        steps in prop::collection::vec((0_u8..6, 0_usize..3, -1_i32..2, 0_u32..4, 0_usize..4, 0_usize..6), 1..60),
        total in 1_usize..8, per_repository in 1_usize..4, per_task in 1_usize..4,
    ) {
        let limits = Limits { total: Some(total), per_repository: Some(per_repository), per_task: Some(per_task) };
        let mut admission = Admission::new(limits);
        let mut model: BTreeMap<String, (String, Millis, BTreeSet<u32>, usize, &str)> = BTreeMap::new();
        for (task, repository, priority, count, taken, door) in steps {
            let (id, repository) = (format!("t{task}"), ["", "r", "s"][repository]);
            // Of one class or another; and one door may be shut.
            let class = ["", "large"][usize::from(task % 2)];
            let shut = ["", "large"].get(door).copied();
            let created_at = Millis::from(task);
            let standing = Standing { resource_class: class, ..standing(repository, priority, created_at) };
            admission.set(&id, standing, ready(0..count), taken);
            model.insert(id, (repository.into(), created_at - Millis::from(priority) * STEP, ready(0..count), taken, class));
            prop_assert_eq!(admission.taken(), model.values().map(|task| task.3).sum::<usize>());
            loop {
                let all: usize = model.values().map(|task| task.3).sum();
                let of = |name: &str| model.values().filter(|task| task.0 == name).map(|task| task.3).sum::<usize>();
                let expected = model
                    .iter()
                    .filter(|(_, task)| all < total && !task.2.is_empty() && task.3 < per_task)
                    .filter(|(_, task)| Some(task.4) != shut)
                    .filter(|(_, task)| task.0.is_empty() || of(&task.0) < per_repository)
                    .min_by_key(|(id, task)| (task.1, id[1..].parse::<Millis>().unwrap(), (*id).clone()))
                    .map(|(id, task)| (id.clone(), *task.2.first().unwrap()));
                prop_assert_eq!(admission.next(|class| Some(class) != shut), expected.clone());
                let Some((id, index)) = expected else { break };
                let task = model.get_mut(&id).unwrap();
                task.2.remove(&index);
                task.3 += 1;
            }
        }
    }
}

#[test]
fn a_task_that_was_held_and_has_nothing_more_to_start_is_forgotten() {
    let mut admission = Admission::new(Limits::default());
    admission.set("a", standing("acme/shop", 0, 1), ready([0]), 0);
    admission.hold("a");
    admission.set("a", standing("acme/shop", 0, 1), ready([]), 0);
    let empty = admission.tasks.is_empty() && admission.repositories.is_empty() && admission.heads.is_empty();
    assert!(empty, "{admission:?}");
}
