//! The sum of shares, convergence to demand, and what becomes of those that vanish.

use super::*;
use proptest::prelude::*;

const SECOND: Duration = Duration::from_secs(1);

fn limit(requests: u32) -> Limit {
    Limit { requests, per: SECOND }
}

fn demand(requests: u64) -> Demand {
    Demand { requests, elapsed: SECOND }
}

/// What a first report says: one request, in no time.
const FIRST: Demand = Demand { requests: 1, elapsed: Duration::from_nanos(1) };

/// The tokens of an answer, none without one.
fn tokens(answer: Option<Answer>) -> u32 {
    match answer {
        Some(Answer::Use(share)) => share.tokens,
        Some(Answer::Abandon) | None => 0,
    }
}

/// Everybody with a demand reports once a second, `turns` times. What they have then.
fn settle(pool: &mut Pool, demands: &[(Id, u64)], now: &mut Instant, turns: u32) -> Vec<u32> {
    let mut last = Vec::new();
    for _ in 0..turns {
        *now += SECOND;
        last = demands.iter().map(|(id, n)| tokens(pool.report(*id, demand(*n), *now))).collect();
    }
    last
}

#[test]
fn one_alone_gets_all_of_it() {
    let mut now = Instant::now();
    let mut pool = Pool::new(limit(100), now);
    assert_eq!(
        pool.report(1, FIRST, now),
        Some(Answer::Use(Share { tokens: 100, per: SECOND })),
        "nobody else is known"
    );
    assert_eq!(settle(&mut pool, &[(1, 500)], &mut now, 4), [100]);
}

#[test]
fn shares_follow_demand_and_whoever_wants_little_gets_it() {
    let mut now = Instant::now();
    let mut pool = Pool::new(limit(100), now);
    assert_eq!(settle(&mut pool, &[(1, 500), (2, 10), (3, 500)], &mut now, 8), [44, 13, 43]);
    assert_eq!(settle(&mut pool, &[(1, 10), (2, 10), (3, 500)], &mut now, 12), [13, 13, 74]);
}

#[test]
fn a_holder_that_vanishes_gives_its_share_back_when_it_is_over() {
    let mut now = Instant::now();
    let mut pool = Pool::new(limit(100), now);
    assert_eq!(settle(&mut pool, &[(1, 500), (2, 500)], &mut now, 8), [50, 50]);
    pool.leave(2, now);
    let gone = now;
    let share = |pool: &mut Pool, after: Duration| tokens(pool.report(1, demand(500), gone + after));
    assert_eq!(share(&mut pool, TTL + GRACE - Duration::from_millis(1)), 50, "it may still be using it");
    assert_eq!(share(&mut pool, TTL + GRACE), 100);
    pool.leave(1, gone + TTL + GRACE);
    assert!(!pool.is_empty(gone + TTL + GRACE));
    assert!(pool.is_empty(gone + (TTL + GRACE) * 2));
}

#[test]
fn a_newcomer_gets_what_is_free_at_once_and_its_part_of_the_rest_when_that_is_over() {
    let mut now = Instant::now();
    let mut pool = Pool::new(limit(100), now);
    assert_eq!(settle(&mut pool, &[(1, 500)], &mut now, 4), [100]);
    assert_eq!(
        pool.report(2, FIRST, now),
        None,
        "there is nothing, and it goes by what its configuration says"
    );
    assert_eq!(settle(&mut pool, &[(1, 500), (2, 500)], &mut now, 4), [50, 50]);
}

#[test]
fn fewer_tokens_than_holders_go_round() {
    let mut now = Instant::now();
    let mut pool = Pool::new(limit(2), now);
    let demands: Vec<(Id, u64)> = (0..5).map(|id| (id, 9)).collect();
    let mut had = [0; 5];
    for _ in 0..60 {
        let shares = settle(&mut pool, &demands, &mut now, 1);
        assert!(shares.iter().sum::<u32>() <= 2);
        had.iter_mut().zip(shares).for_each(|(had, share)| *had += share);
    }
    assert!(had.iter().all(|had| *had > 0), "{had:?}");
}

#[test]
fn a_thousand_that_are_idle_take_nothing_from_one_that_is_not_and_are_forgotten() {
    let mut now = Instant::now();
    let mut pool = Pool::new(limit(1000), now);
    let mut demands: Vec<(Id, u64)> = (1..1000).map(|id| (id, 0)).collect();
    demands.push((0, 5000));
    let shares = settle(&mut pool, &demands, &mut now, 8);
    assert_eq!(shares.last(), Some(&1000), "{shares:?}");
    now += SECOND * 2;
    assert_eq!(pool.report(1, Demand { requests: 0, elapsed: SECOND * 2 }, now), Some(Answer::Abandon));
    assert_eq!(tokens(pool.report(1, FIRST, now)), 0, "it is a newcomer, and nothing is free");
}

#[test]
fn nothing_is_given_before_an_earlier_owners_shares_are_over() {
    let now = Instant::now();
    let mut pool = Pool::new(limit(10), now + TTL);
    assert_eq!(pool.report(1, FIRST, now), None);
    assert_eq!(tokens(pool.report(1, demand(99), now + TTL)), 10);
}

#[test]
fn a_lower_limit_holds_when_what_is_too_much_is_over() {
    let mut now = Instant::now();
    let mut pool = Pool::new(limit(100), now);
    settle(&mut pool, &[(1, 500), (2, 500)], &mut now, 8);
    pool.set_limit(limit(10));
    assert_eq!(settle(&mut pool, &[(1, 500), (2, 500)], &mut now, 5), [5, 5]);
}

#[derive(Debug, Clone)]
enum Step {
    Report(Id, u64, u64),
    Leave(Id),
    Pause(u64),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => (0..6u64, 0..400u64, 0..1500u64).prop_map(|(id, n, ms)| Step::Report(id, n, ms)),
        1 => (0..6u64).prop_map(Step::Leave),
        4 => (0..1200u64).prop_map(Step::Pause),
    ]
}

proptest! {
    /// Each share is used from the moment at which it comes, up to GRACE late, for TTL; a holder that was sent several uses the
    /// largest of them.
    #[test]
    fn the_sum_of_what_may_be_used_never_exceeds_the_limit(
        most in 0u32..300,
        steps in prop::collection::vec(step(), 1..150),
    ) {
        let start = Instant::now();
        let mut now = start;
        let mut pool = Pool::new(limit(most), now);
        let mut sent: Vec<(Id, u32, Instant)> = Vec::new();
        for step in steps {
            match step {
                Step::Report(id, requests, ms) => {
                    let demand = Demand { requests, elapsed: Duration::from_millis(ms) };
                    if let Some(Answer::Use(share)) = pool.report(id, demand, now) {
                        sent.push((id, share.tokens, now + GRACE + TTL));
                    }
                }
                Step::Leave(id) => pool.leave(id, now),
                Step::Pause(ms) => now += Duration::from_millis(ms),
            }
            sent.retain(|(_, _, end)| *end > now);
            let of = |id| sent.iter().filter(|(other, ..)| *other == id).map(|(_, n, _)| *n).max().unwrap_or(0);
            let sum: u32 = (0..6).map(of).sum();
            prop_assert!(sum <= most, "{sum} of {most} at {:?}", now - start);
        }
    }

    /// After some reports everybody has what it wants or a fair share, and all of the limit is there for those who want more.
    #[test]
    fn shares_come_to_what_is_wanted(
        most in 20u32..5000,
        demands in prop::collection::vec(0u64..3000, 1..8),
    ) {
        let mut now = Instant::now();
        let mut pool = Pool::new(limit(most), now);
        let demands: Vec<(Id, u64)> = (0..).zip(demands).collect();
        let shares = settle(&mut pool, &demands, &mut now, 30);
        let fair = u64::from(most) / demands.len() as u64;
        for ((_, demand), share) in demands.iter().zip(&shares) {
            prop_assert!(u64::from(*share) >= (*demand).min(fair), "{shares:?} for {demands:?}");
        }
        let wanted: u64 = demands.iter().map(|(_, n)| n).sum();
        if wanted >= u64::from(most) {
            prop_assert_eq!(shares.iter().sum::<u32>(), most, "{:?} for {:?}", shares, demands);
        }
    }
}
