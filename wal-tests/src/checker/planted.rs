//! The checkers checked: histories written by hand, each with one thing wrong that must be named,
//! and next to it the history in which it is right.

use super::append::{self, Anomaly};
use super::witness::{self, Violation};
use super::{register, set};
use crate::history::{Action, Answer, Fate, Level, Operation, Reach};

const WRITE: Reach = Reach::Write { journalled: true };
const READ: Reach = Reach::Read(Level::Linearizable);

/// An operation that was answered, from one moment to another.
fn operation(
    id: u64,
    (begun, ended): (u64, u64),
    reach: Reach,
    did: &[(Action, Answer)],
) -> Operation {
    Operation {
        id,
        client: u32::try_from(id).unwrap(),
        node: 0,
        start: 0,
        actions: did.iter().map(|(action, _)| action.clone()).collect(),
        reach,
        begun,
        ended,
        fate: Fate::Acknowledged,
        answers: did.iter().map(|(_, answer)| answer.clone()).collect(),
        index: None,
        place: None,
        floor: 0,
    }
}

fn numbers(numbers: &[i64]) -> Answer {
    Answer::Numbers(numbers.to_vec())
}

fn set_to(value: i64) -> (Action, Answer) {
    (Action::Set { key: 1, value }, Answer::Changed(1))
}

fn cas(from: i64, to: i64, done: bool) -> (Action, Answer) {
    let answer = Answer::Changed(i64::from(done));
    (Action::Cas { key: 1, from, to }, answer)
}

fn saw(values: &[i64]) -> (Action, Answer) {
    (Action::ReadRegister(1), numbers(values))
}

fn append(key: u64, value: i64) -> (Action, Answer) {
    (Action::Append { key, value }, Answer::Changed(1))
}

fn list(key: u64, values: &[i64]) -> (Action, Answer) {
    (Action::ReadList(key), numbers(values))
}

fn of_fate(mut operation: Operation, fate: Fate) -> Operation {
    operation.fate = fate;
    operation.answers.clear();
    operation
}

/// At this place of the journal, with an index that fits.
fn at(mut operation: Operation, place: u64) -> Operation {
    operation.place = Some(place);
    operation.index = Some(10 + place);
    operation
}

mod by_index {
    use super::*;

    /// 1 sets 5, 2 sets 6 after that, 3 reads 6 after both, 4 was refused, 5 is of unknown fate and
    /// was done last.
    fn right() -> (Vec<Operation>, Vec<(u64, u64)>) {
        let operations = vec![
            at(operation(1, (0, 10), WRITE, &[set_to(5)]), 1),
            at(operation(2, (20, 30), WRITE, &[set_to(6)]), 2),
            at(operation(3, (40, 50), READ, &[saw(&[6])]), 2),
            of_fate(operation(4, (40, 50), WRITE, &[set_to(7)]), Fate::Refused),
            of_fate(operation(5, (40, 50), WRITE, &[set_to(8)]), Fate::Unknown),
        ];
        (operations, vec![(1, 1), (2, 2), (3, 5)])
    }

    #[track_caller]
    fn convicted(change: impl FnOnce(&mut Vec<Operation>, &mut Vec<(u64, u64)>)) -> Vec<Violation> {
        let (mut operations, mut journal) = right();
        change(&mut operations, &mut journal);
        witness::check(&operations, &journal).0
    }

    #[test]
    fn what_is_right_passes_whether_the_unknown_was_done_or_not() {
        assert_eq!(convicted(|_, _| ()), []);
        assert_eq!(convicted(|_, journal| journal.truncate(2)), []);
        let (operations, journal) = right();
        let (_, checked) = witness::check(&operations, &journal);
        assert_eq!((checked.writes, checked.unknown_done), (2, 1));
        assert_eq!((checked.current_reads, checked.other_reads), (1, 0));
    }

    #[test]
    fn what_was_acknowledged_is_where_it_was_told_to_be_and_nothing_else_is_there() {
        let found = convicted(|operations, journal| {
            journal.truncate(1);
            operations.retain(|it| it.id != 3);
        });
        assert_eq!(found, [Violation::Lost(2)]);
        let found = convicted(|_, journal| journal.push((4, 4)));
        assert_eq!(found, [Violation::Refused(4)]);
        let found = convicted(|_, journal| journal.push((4, 99)));
        assert_eq!(found, [Violation::Invented(99)]);
        let found = convicted(|_, journal| journal.push((4, 1)));
        assert!(found.contains(&Violation::Duplicate(1)), "{found:?}");
        let found = convicted(|_, journal| journal[2].0 = 4);
        assert_eq!(found, [Violation::Missing(3)]);
        let found = convicted(|operations, _| operations[1].place = Some(3));
        assert_eq!(found, [Violation::Misplaced(2)]);
    }

    #[test]
    fn indexes_rise_with_places() {
        let found = convicted(|operations, _| operations[0].index = Some(13));
        assert_eq!(found, [Violation::IndexFell(2)]);
        let found = convicted(|operations, _| operations[0].index = None);
        assert_eq!(found, [Violation::IndexFell(1)]);
        // Two of one group have the same.
        assert_eq!(
            convicted(|operations, _| operations[0].index = Some(12)),
            []
        );
    }

    #[test]
    fn answers_are_those_of_the_model() {
        let found = convicted(|operations, _| operations[2].answers = vec![numbers(&[5])]);
        assert_eq!(found, [Violation::WrongAnswer(3, Some(numbers(&[6])))]);
        let found = convicted(|operations, _| {
            operations[1] = at(operation(2, (20, 30), WRITE, &[cas(4, 6, true)]), 2);
        });
        assert!(found.contains(&Violation::WrongAnswer(2, Some(Answer::Changed(0)))));
        // A read of what a refused write would have left, a dirty one.
        let found = convicted(|operations, _| operations[2].answers = vec![numbers(&[7])]);
        assert_eq!(found, [Violation::WrongAnswer(3, Some(numbers(&[6])))]);
    }

    #[test]
    fn a_stale_read_is_one_if_it_promised_the_newest() {
        let stale = |level| {
            convicted(move |operations, _| {
                let read = operation(3, (40, 50), Reach::Read(level), &[saw(&[5])]);
                operations[2] = at(read, 1);
            })
        };
        assert_eq!(stale(Level::Linearizable), [Violation::Stale(3)]);
        assert_eq!(stale(Level::Strong), [Violation::Stale(3)]);
        assert_eq!(stale(Level::Weak), []);
        assert_eq!(stale(Level::None), []);
        let promised = convicted(|operations, _| {
            let read = operation(3, (40, 50), Reach::Read(Level::None), &[saw(&[5])]);
            operations[2] = at(read, 1);
            operations[2].floor = 2;
        });
        assert_eq!(promised, [Violation::Stale(3)]);
    }

    #[test]
    fn writes_are_in_the_order_of_real_time() {
        let found = convicted(|operations, _| {
            (operations[1].begun, operations[1].ended) = (1, 5);
            (operations[0].begun, operations[0].ended) = (10, 20);
        });
        assert_eq!(found, [Violation::Stale(2)]);
    }

    #[test]
    fn nothing_is_read_before_it_was_asked_for() {
        let found = convicted(|operations, _| {
            (operations[2].begun, operations[2].ended) = (12, 15);
        });
        assert_eq!(found, [Violation::FromTheFuture(3)]);
    }

    #[test]
    fn two_reads_one_after_the_other_do_not_go_back() {
        let later = |operations: &mut Vec<Operation>, level, node| {
            // The write at place 3 has not been answered when both reads are.
            let reach = Reach::Read(level);
            operations[2] = at(operation(3, (41, 50), reach, &[saw(&[8])]), 3);
            let mut later = at(operation(6, (60, 70), reach, &[saw(&[6])]), 2);
            later.node = node;
            operations.push(later);
        };
        let found = convicted(|operations, _| later(operations, Level::Linearizable, 1));
        assert_eq!(found, [Violation::Stale(6)]);
        let found = convicted(|operations, _| later(operations, Level::None, 0));
        assert_eq!(found, [Violation::SawLess(6)]);
        assert_eq!(
            convicted(|operations, _| later(operations, Level::None, 1)),
            []
        );
        assert_eq!(
            convicted(|operations, _| later(operations, Level::Weak, 0)),
            []
        );
    }
}

mod by_search {
    use super::*;

    #[track_caller]
    fn is_right(operations: &[Operation]) -> bool {
        let verdict = register::check(operations);
        assert_eq!(verdict.undecided, [0; 0]);
        assert_eq!(verdict.right + verdict.wrong.len(), 1);
        verdict.wrong.is_empty()
    }

    fn write(id: u64, time: (u64, u64), did: (Action, Answer)) -> Operation {
        operation(id, time, Reach::Write { journalled: false }, &[did])
    }

    fn read(id: u64, time: (u64, u64), seen: &[i64]) -> Operation {
        operation(id, time, READ, &[saw(seen)])
    }

    #[test]
    fn operations_at_the_same_time_have_any_order_that_explains_them() {
        assert!(is_right(&[
            write(1, (0, 100), set_to(1)),
            write(2, (0, 100), set_to(2)),
            read(3, (10, 20), &[2]),
            read(4, (30, 40), &[1]),
            write(5, (50, 60), cas(1, 3, true)),
            read(6, (70, 80), &[3]),
        ]));
    }

    #[test]
    fn a_stale_read_has_no_order() {
        let stale = [
            write(1, (0, 10), set_to(1)),
            write(2, (20, 30), set_to(2)),
            read(3, (40, 50), &[1]),
        ];
        assert!(!is_right(&stale));
        let mut early = stale;
        early[2].begun = 25;
        assert!(is_right(&early));
    }

    #[test]
    fn a_lost_write_has_no_order() {
        assert!(!is_right(&[
            write(1, (0, 10), set_to(1)),
            read(2, (20, 30), &[])
        ]));
    }

    #[test]
    fn a_lost_update_has_no_order() {
        assert!(!is_right(&[
            write(1, (0, 10), set_to(1)),
            write(2, (20, 50), cas(1, 2, true)),
            write(3, (20, 50), cas(1, 3, true)),
        ]));
        assert!(is_right(&[
            write(1, (0, 10), set_to(1)),
            write(2, (20, 50), cas(1, 2, true)),
            write(3, (20, 50), cas(1, 3, false)),
        ]));
    }

    #[test]
    fn reads_do_not_go_back() {
        assert!(!is_right(&[
            write(1, (0, 100), set_to(1)),
            read(2, (10, 20), &[1]),
            read(3, (30, 40), &[]),
        ]));
    }

    #[test]
    fn what_was_refused_is_seen_by_nobody_and_what_is_unknown_by_all_or_none() {
        let seen = |fate, times: [&[i64]; 2]| {
            is_right(&[
                of_fate(write(1, (0, 10), set_to(1)), fate),
                read(2, (20, 30), times[0]),
                read(3, (40, 50), times[1]),
            ])
        };
        assert!(seen(Fate::Unknown, [&[], &[]]));
        assert!(seen(Fate::Unknown, [&[], &[1]]));
        assert!(seen(Fate::Unknown, [&[1], &[1]]));
        assert!(!seen(Fate::Unknown, [&[1], &[]]));
        assert!(seen(Fate::Refused, [&[], &[]]));
        assert!(!seen(Fate::Refused, [&[], &[1]]));
    }

    #[test]
    fn many_unknown_writes_do_not_make_the_search_endless() {
        let mut operations: Vec<Operation> = (1..=25)
            .map(|id| {
                let value = i64::try_from(id).unwrap();
                of_fate(write(id, (id, 0), set_to(value)), Fate::Unknown)
            })
            .collect();
        for id in 26..100 {
            let value = i64::try_from(id % 20 + 1).unwrap();
            operations.push(write(id, (id * 10, id * 10 + 5), set_to(value)));
            operations.push(read(id + 100, (id * 10 + 6, id * 10 + 7), &[value]));
        }
        assert!(is_right(&operations));
        let last = operations.len() - 1;
        operations[last].answers = vec![numbers(&[77])];
        assert!(!is_right(&operations));
    }

    #[test]
    fn random_histories_of_a_real_register_are_right_and_a_changed_answer_is_not() {
        let mut random = crate::seed::Random::new(7);
        for _ in 0..200 {
            let mut state: Option<i64> = None;
            let mut operations = Vec::new();
            for id in 1..60_u64 {
                // Each happens at a moment of its own, and seems to last longer.
                let moment = id * 10;
                let begun = moment.saturating_sub(random.number_below(40));
                let time = (begun, moment + random.number_below(40));
                let value = i64::try_from(id).unwrap();
                let mut next = match random.below(3) {
                    0 => read(id, time, state.as_slice()),
                    1 => {
                        let from = state.unwrap_or(0) + i64::from(random.chance(30));
                        let done = state == Some(from);
                        state = if done { Some(value) } else { state };
                        write(id, time, cas(from, value, done))
                    }
                    _ => {
                        state = Some(value);
                        write(id, time, set_to(value))
                    }
                };
                if random.chance(10) && matches!(next.reach, Reach::Write { .. }) {
                    next = of_fate(next, Fate::Unknown);
                }
                operations.push(next);
            }
            operations.push(read(99, (700, 710), state.as_slice()));
            assert!(is_right(&operations));
            let last = operations.len() - 1;
            operations[last].answers = vec![numbers(&[-1])];
            assert!(!is_right(&operations));
        }
    }
}

mod by_lists {
    use super::*;

    /// The names of what is found.
    fn names(operations: &[Operation]) -> Vec<String> {
        let name = |anomaly: &Anomaly| match anomaly {
            Anomaly::Circle(name, _) => (*name).to_owned(),
            other => {
                let text = format!("{other:?}");
                text.split('(').next().unwrap().to_owned()
            }
        };
        append::check(operations).iter().map(name).collect()
    }

    /// Transactions at the same time.
    fn together(transactions: &[&[(Action, Answer)]]) -> Vec<Operation> {
        let number = (1..).zip(transactions);
        number
            .map(|(id, did)| operation(id, (0, 100), WRITE, did))
            .collect()
    }

    #[test]
    fn what_is_serializable_passes() {
        let none: [String; 0] = [];
        let mut operations = together(&[
            &[append(1, 1), append(2, 2)],
            &[list(1, &[1]), append(1, 3), list(1, &[1, 3])],
            &[list(1, &[1, 3]), list(2, &[2])],
            &[list(1, &[]), list(2, &[])],
        ]);
        assert_eq!(names(&operations), none);
        // Of unknown fate, and seen; of unknown fate, and never seen.
        operations.push(of_fate(
            operation(5, (0, 1), WRITE, &[append(1, 9)]),
            Fate::Unknown,
        ));
        operations.push(of_fate(
            operation(6, (0, 1), WRITE, &[append(1, 8)]),
            Fate::Unknown,
        ));
        operations.push(operation(7, (200, 300), READ, &[list(1, &[1, 3, 9])]));
        assert_eq!(names(&operations), none);
    }

    #[test]
    fn g0_two_lists_were_written_in_different_orders() {
        let operations = together(&[
            &[append(1, 1), append(2, 1)],
            &[append(1, 2), append(2, 2)],
            &[list(1, &[1, 2])],
            &[list(2, &[2, 1])],
        ]);
        assert!(names(&operations).contains(&"G0".to_owned()));
    }

    #[test]
    fn g1a_what_was_refused_was_read() {
        let mut operations = together(&[&[append(1, 1)], &[list(1, &[1])]]);
        operations[0] = of_fate(operations[0].clone(), Fate::Refused);
        assert_eq!(names(&operations), ["AbortedRead"]);
    }

    #[test]
    fn g1b_a_part_of_a_transaction_was_read() {
        let operations = together(&[&[append(1, 1), append(1, 2)], &[list(1, &[1])]]);
        let found = append::check(&operations);
        assert!(
            found.contains(&Anomaly::IntermediateRead(2, 1)),
            "{found:?}"
        );
    }

    #[test]
    fn g1c_two_transactions_read_each_other() {
        let operations = together(&[
            &[append(1, 1), list(2, &[2])],
            &[append(2, 2), list(1, &[1])],
        ]);
        assert_eq!(names(&operations), ["G1c"]);
    }

    #[test]
    fn a_lost_update_and_a_skewed_read_are_g_single() {
        let lost_update = together(&[
            &[list(1, &[]), append(1, 1)],
            &[list(1, &[]), append(1, 2)],
            &[list(1, &[1, 2])],
        ]);
        assert_eq!(names(&lost_update), ["G-single"]);
        let skewed = together(&[
            &[append(1, 1), append(2, 2)],
            &[list(1, &[1]), list(2, &[])],
            &[list(2, &[2])],
        ]);
        assert_eq!(names(&skewed), ["G-single"]);
    }

    #[test]
    fn write_skew_and_a_long_fork_are_g2() {
        let write_skew = together(&[
            &[list(1, &[]), append(2, 2)],
            &[list(2, &[]), append(1, 1)],
            &[list(1, &[1]), list(2, &[2])],
        ]);
        assert_eq!(names(&write_skew), ["G2"]);
        let long_fork = together(&[
            &[append(1, 1)],
            &[append(2, 2)],
            &[list(1, &[1]), list(2, &[])],
            &[list(1, &[]), list(2, &[2])],
        ]);
        assert_eq!(names(&long_fork), ["G2"]);
    }

    #[test]
    fn a_stale_read_is_wrong_only_in_real_time() {
        let mut operations = together(&[&[append(1, 1)], &[list(1, &[])], &[list(1, &[1])]]);
        assert_eq!(names(&operations), [""; 0]);
        (operations[1].begun, operations[1].ended) = (150, 160);
        assert_eq!(names(&operations), ["G-single in real time"]);
        operations[1].reach = Reach::Read(Level::None);
        assert_eq!(names(&operations), [""; 0]);
    }

    #[test]
    fn a_lost_write_is_one_that_a_later_read_does_not_have() {
        let mut operations = together(&[&[append(1, 1)], &[append(1, 2)]]);
        operations.push(operation(3, (200, 210), READ, &[list(1, &[1])]));
        assert_eq!(names(&operations), ["G-single in real time"]);
        operations[1] = of_fate(operations[1].clone(), Fate::Unknown);
        assert_eq!(names(&operations), [""; 0]);
    }

    #[test]
    fn writes_out_of_the_order_of_time_are_found() {
        let mut operations = together(&[&[append(1, 1)], &[append(1, 2)], &[list(1, &[2, 1])]]);
        assert_eq!(names(&operations), [""; 0]);
        (operations[0].begun, operations[0].ended) = (0, 10);
        (operations[1].begun, operations[1].ended) = (20, 30);
        assert_eq!(names(&operations), ["G0 in real time"]);
    }

    #[test]
    fn lists_that_cannot_be_are_named() {
        let found = |did: &[&[(Action, Answer)]]| names(&together(did));
        assert_eq!(found(&[&[list(1, &[7])]]), ["Invented"]);
        assert_eq!(
            found(&[&[append(1, 1)], &[list(1, &[1, 1])]])[0],
            "Duplicate"
        );
        let contradiction = found(&[
            &[append(1, 1)],
            &[append(1, 2)],
            &[list(1, &[1])],
            &[list(1, &[2])],
        ]);
        assert!(contradiction.contains(&"ContradictingLists".to_owned()));
        assert_eq!(found(&[&[append(1, 1), list(1, &[])]]), ["Internal"]);
        let changed = found(&[&[append(1, 1)], &[list(1, &[]), list(1, &[1])]]);
        assert!(changed.contains(&"Internal".to_owned()), "{changed:?}");
    }
}

mod by_sets {
    use super::*;

    fn insert(value: i64) -> (Action, Answer) {
        (Action::Insert { key: 1, value }, Answer::Changed(1))
    }

    fn found(fate: Fate, reads: &[&[i64]]) -> Vec<set::Anomaly> {
        let mut operations = vec![
            operation(1, (0, 1), WRITE, &[insert(1)]),
            of_fate(operation(2, (0, 1), WRITE, &[insert(2)]), fate),
        ];
        for (id, seen) in (3..).zip(reads) {
            let did = (Action::ReadSet(1), numbers(seen));
            operations.push(operation(id, (0, 1), Reach::Read(Level::None), &[did]));
        }
        set::check(&operations).0
    }

    #[test]
    fn a_long_fork_is_two_reads_that_each_lack_something() {
        assert_eq!(found(Fate::Unknown, &[&[], &[1], &[1, 2], &[1]]), []);
        let forked = found(Fate::Unknown, &[&[1], &[2]]);
        assert_eq!(forked, [set::Anomaly::LongFork(3, 4)]);
    }

    #[test]
    fn elements_that_were_refused_or_that_nobody_inserted_are_found() {
        let dirty = found(Fate::Refused, &[&[1, 2]]);
        assert_eq!(dirty, [set::Anomaly::AbortedRead(3, 2)]);
        let invented = found(Fate::Unknown, &[&[3]]);
        assert_eq!(invented, [set::Anomaly::AbortedRead(3, 3)]);
    }

    #[test]
    fn money_is_neither_made_nor_lost() {
        let sum_of = |balances: &[i64]| {
            let did = (Action::ReadAccounts, numbers(balances));
            set::check(&[operation(1, (0, 1), READ, &[did])]).0
        };
        assert_eq!(sum_of(&[100; 8]), []);
        assert_eq!(sum_of(&[200, 0, 100, 100, 100, 100, 100, 100]), []);
        let wrong = [set::Anomaly::WrongSum(1)];
        assert_eq!(sum_of(&[101, 100, 100, 100, 100, 100, 100, 100]), wrong);
        assert_eq!(sum_of(&[100; 7]), wrong);
        assert_eq!(sum_of(&[201, -1, 100, 100, 100, 100, 100, 100]), wrong);
    }
}
