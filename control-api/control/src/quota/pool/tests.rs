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

/// Tokens a second of an answer, none without one.
fn tokens(answer: Option<Answer>) -> f64 {
    match answer {
        Some(Answer::Use(share)) => f64::from(share.per_fill) / share.interval.as_secs_f64(),
        Some(Answer::Abandon) | None => 0.0,
    }
}

#[track_caller]
fn about(shares: &[f64], wanted: &[f64]) {
    let near = |(share, wanted): (&f64, &f64)| (share - wanted).abs() < 0.03 * wanted.max(1.0);
    assert!(
        shares.len() == wanted.len() && shares.iter().zip(wanted).all(near),
        "{shares:?}, not {wanted:?}"
    );
}

/// Everybody with a demand reports once a second, `turns` times. What they have then.
fn settle(pool: &mut Pool, demands: &[(Id, u64)], now: &mut Instant, turns: u32) -> Vec<f64> {
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
        Some(Answer::Use(Share { max: 100, per_fill: 100, interval: SECOND })),
        "nobody else is known"
    );
    about(&settle(&mut pool, &[(1, 500)], &mut now, 4), &[100.0]);
}

#[test]
fn shares_follow_demand_and_whoever_wants_little_gets_it() {
    let mut now = Instant::now();
    let mut pool = Pool::new(limit(100), now);
    about(&settle(&mut pool, &[(1, 500), (2, 10), (3, 500)], &mut now, 8), &[43.0, 14.0, 43.0]);
    about(&settle(&mut pool, &[(1, 10), (2, 10), (3, 500)], &mut now, 12), &[14.0, 14.0, 72.0]);
}

#[test]
fn a_holder_that_vanishes_gives_its_share_back_when_it_is_over() {
    let mut now = Instant::now();
    let mut pool = Pool::new(limit(100), now);
    about(&settle(&mut pool, &[(1, 500), (2, 500)], &mut now, 8), &[50.0, 50.0]);
    pool.leave(2, now);
    let gone = now;
    let share = |pool: &mut Pool, after: Duration| tokens(pool.report(1, demand(500), gone + after));
    // It may still be using it.
    about(&[share(&mut pool, TTL + GRACE - Duration::from_millis(1))], &[50.0]);
    about(&[share(&mut pool, TTL + GRACE)], &[100.0]);
    pool.leave(1, gone + TTL + GRACE);
    assert!(!pool.is_empty(gone + TTL + GRACE));
    assert!(pool.is_empty(gone + (TTL + GRACE) * 2));
}

#[test]
fn one_that_says_nothing_more_is_forgotten() {
    let mut now = Instant::now();
    let mut pool = Pool::new(limit(100), now);
    about(&settle(&mut pool, &[(1, 500), (2, 500)], &mut now, 8), &[50.0, 50.0]);
    about(&settle(&mut pool, &[(1, 500)], &mut now, 9), &[50.0]);
    about(&settle(&mut pool, &[(1, 500)], &mut now, 2), &[100.0]);
}

#[test]
fn a_newcomer_gets_what_is_free_at_once_and_its_part_of_the_rest_when_that_is_over() {
    let mut now = Instant::now();
    let mut pool = Pool::new(limit(100), now);
    about(&settle(&mut pool, &[(1, 500)], &mut now, 4), &[100.0]);
    assert_eq!(
        pool.report(2, FIRST, now),
        None,
        "there is nothing, and it goes by what its configuration says"
    );
    about(&settle(&mut pool, &[(1, 500), (2, 500)], &mut now, 4), &[50.0, 50.0]);
}

#[test]
fn fewer_tokens_than_holders_are_shared_by_all_of_them() {
    let mut now = Instant::now();
    let mut pool = Pool::new(Limit { requests: 2, per: SECOND * 60 }, now);
    let demands: Vec<(Id, u64)> = (0..5).map(|id| (id, 9)).collect();
    settle(&mut pool, &demands, &mut now, 8);
    now += SECOND;
    let Some(Answer::Use(share)) = pool.report(0, demand(9), now) else { panic!("nothing") };
    assert_eq!(share.max, 1, "one of them after the other");
    let minutes = share.interval.as_secs_f64() / f64::from(share.per_fill) / 60.0;
    assert!(
        (minutes - 2.5).abs() < 0.01,
        "2 tokens a minute for 5: one in 2.5 minutes each, and not {minutes}"
    );
}

#[test]
fn whoever_asks_seldom_keeps_something_while_others_want_everything() {
    let mut now = Instant::now();
    let mut pool = Pool::new(limit(100), now);
    settle(&mut pool, &[(1, 500), (2, 1)], &mut now, 8);
    let shares = settle(&mut pool, &[(1, 500), (2, 0)], &mut now, 8);
    about(&shares, &[95.0, 5.0]);
}

#[test]
fn a_thousand_that_are_idle_keep_a_tenth_together_and_are_forgotten() {
    let mut now = Instant::now();
    let mut pool = Pool::new(limit(1000), now);
    let mut demands: Vec<(Id, u64)> = (1..1000).map(|id| (id, 0)).collect();
    demands.push((0, 5000));
    let shares = settle(&mut pool, &demands, &mut now, 8);
    about(&shares[999..], &[900.0]);
    let idle = Demand { requests: 0, elapsed: SECOND * 2 };
    now += SECOND * 2;
    for id in 1..1000 {
        assert_eq!(pool.report(id, idle, now), Some(Answer::Abandon));
    }
    about(&settle(&mut pool, &[(0, 5000)], &mut now, 4), &[1000.0]);
    assert_eq!(pool.report(1, FIRST, now), None, "it is a newcomer, and nothing is free");
}

#[test]
fn nothing_is_given_before_an_earlier_owners_shares_are_over() {
    let now = Instant::now();
    let mut pool = Pool::new(limit(10), now + TTL);
    assert_eq!(pool.report(1, FIRST, now), None);
    about(&[tokens(pool.report(1, demand(99), now + TTL))], &[10.0]);
}

#[test]
fn a_lower_limit_holds_when_what_is_too_much_is_over() {
    let mut now = Instant::now();
    let mut pool = Pool::new(limit(100), now);
    settle(&mut pool, &[(1, 500), (2, 500)], &mut now, 8);
    pool.set_limit(limit(10));
    about(&settle(&mut pool, &[(1, 500), (2, 500)], &mut now, 5), &[5.0, 5.0]);
}

#[test]
fn what_was_sent_of_another_limit_is_counted_as_the_same_rate() {
    let mut now = Instant::now();
    let mut pool = Pool::new(limit(100), now);
    about(&settle(&mut pool, &[(1, 500)], &mut now, 4), &[100.0]);
    pool.set_limit(Limit { requests: 12_000, per: SECOND * 60 });
    let share = tokens(pool.report(2, demand(500), now));
    about(&[share], &[100.0]);
    about(&settle(&mut pool, &[(1, 500), (2, 500)], &mut now, 6), &[100.0, 100.0]);
    pool.set_limit(Limit { requests: 0, per: SECOND });
    about(&settle(&mut pool, &[(1, 500), (2, 500)], &mut now, 1), &[0.0, 0.0]);
}

#[test]
fn a_token_of_years_is_none() {
    let now = Instant::now();
    let pool = Pool::new(Limit { requests: 1, per: SECOND * 86_400 * 30 }, now);
    assert_eq!(pool.share(1).max, 0);
    assert_eq!(pool.share(pool.parts).per_fill, 1);
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
        let mut sent: Vec<(Id, f64, Instant)> = Vec::new();
        for step in steps {
            match step {
                Step::Report(id, requests, ms) => {
                    let demand = Demand { requests, elapsed: Duration::from_millis(ms) };
                    let answer = pool.report(id, demand, now);
                    sent.push((id, tokens(answer), now + GRACE + TTL));
                }
                Step::Leave(id) => pool.leave(id, now),
                Step::Pause(ms) => now += Duration::from_millis(ms),
            }
            sent.retain(|(_, _, end)| *end > now);
            let of = |id| sent.iter().filter(|(other, ..)| *other == id).map(|(_, n, _)| *n).fold(0.0, f64::max);
            let sum: f64 = (0..6).map(of).sum();
            prop_assert!(sum <= f64::from(most) + 1e-6, "{sum} of {most} at {:?}", now - start);
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
            prop_assert!(*share >= (*demand).min(fair) as f64, "{shares:?} for {demands:?}");
        }
        let wanted: u64 = demands.iter().map(|(_, n)| n).sum();
        if wanted >= u64::from(most) {
            let sum: f64 = shares.iter().sum();
            prop_assert!((sum - f64::from(most)).abs() < 1e-6, "{shares:?} for {demands:?}");
        }
    }
}
