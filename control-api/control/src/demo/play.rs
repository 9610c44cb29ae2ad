//! The course of the demo.

use std::time::Duration;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep_until};

use super::DemoArgs;
use super::client::Client;
use super::report::{self, Outcome};
use super::screen::{Moment, Screen};
use super::stage::{FIRST_SPLIT, SECOND_SPLIT, Stage};
use super::streams::Streams;
use super::visitors::{Phase, Visitors};

/// Between two edits of a demo without an end.
const EDIT_EVERY: Duration = Duration::from_secs(10);
/// When a new root is announced, in a demo that is long enough to see it replace the old one.
const ROTATE_AT: Duration = Duration::from_secs(15);
const LONG_ENOUGH: Duration = Duration::from_secs(60);
/// For answers that are under way at the end.
const SETTLES_IN: Duration = Duration::from_secs(10);

/// How it went.
#[derive(Default)]
struct Course {
    /// How long the sidecars took to have each edit.
    edits: Vec<Duration>,
    /// An edit that did not arrive, and why.
    lost: Option<String>,
    interrupted: bool,
    /// The root of the beginning, once another one has been announced.
    old_root: Option<String>,
}

/// Ctrl-C and its relatives.
struct Interrupts([Signal; 3]);

impl Interrupts {
    fn new() -> std::io::Result<Self> {
        let [a, b, c] = [SignalKind::interrupt(), SignalKind::terminate(), SignalKind::hangup()].map(signal);
        Ok(Self([a?, b?, c?]))
    }

    async fn next(&mut self) {
        let [a, b, c] = &mut self.0;
        tokio::select! { _ = a.recv() => {}, _ = b.recv() => {}, _ = c.recv() => {} }
    }
}

/// Runs the demo. True when every check held.
pub(super) async fn play(args: &DemoArgs) -> anyhow::Result<bool> {
    let mut interrupts = Interrupts::new()?;
    let mut screen = Screen::new(args.plain);
    let mut stage = tokio::select! {
        stage = Stage::build() => stage?,
        // What has started so far ends with the future that held it.
        () = interrupts.next() => anyhow::bail!("interrupted while it started"),
    };
    let held = show(args, &mut stage, &mut screen, &mut interrupts).await;
    stage.end().await;
    held
}

async fn show(
    args: &DemoArgs,
    stage: &mut Stage,
    screen: &mut Screen,
    interrupts: &mut Interrupts,
) -> anyhow::Result<bool> {
    screen.introduce(stage);
    let visitors = Visitors::new(FIRST_SPLIT)?;
    let began = Instant::now();
    let client = Client::new(stage.outbound("visitors", "shop")?);
    let streams = Streams::open(&client);
    let traffic = visitors.start(client, args.rate);
    let course = run(args, stage, screen, interrupts, &visitors).await;
    let elapsed = began.elapsed();
    let seen = streams.seen();
    traffic.abort();
    visitors.settle(SETTLES_IN).await;
    // The last answers may still be on their way into the counters.
    let view = stage.view().await;
    let authority = stage.authority().await?;
    let dead = stage.dead();
    let mut tally = visitors.tally();
    if course.interrupted && tally.phases.len() > 1 && tally.phases.last().is_some_and(|p| p.answers() < 200)
    {
        tally.phases.pop();
    }
    let outcome = Outcome {
        tally: &tally,
        view: &view,
        dead: &dead,
        sidecars: stage.sidecars.len(),
        edits: &course.edits,
        lost: course.lost.as_deref(),
        streams: &seen,
        elapsed,
        authority: &authority,
        old_root: course.old_root.as_deref(),
    };
    let checks = report::checks(&outcome);
    screen.say(&report::text(screen, &outcome, &checks));
    Ok(checks.iter().all(|check| check.held))
}

/// Shows what happens and edits the route, until the time is over or somebody interrupts.
async fn run(
    args: &DemoArgs,
    stage: &mut Stage,
    screen: &mut Screen,
    interrupts: &mut Interrupts,
    visitors: &Visitors,
) -> Course {
    let began = Instant::now();
    let end = args.duration.map(|time| began + time);
    let mut edit_at = began + args.duration.map_or(EDIT_EVERY, |time| time / 2);
    let long_enough = args.duration.is_none_or(|time| time >= LONG_ENOUGH);
    let (mut course, mut note) = (Course::default(), String::new());
    let mut clock = interval(screen.period());
    clock.set_missed_tick_behavior(MissedTickBehavior::Skip);
    clock.tick().await;
    loop {
        tokio::select! {
            () = interrupts.next() => return Course { interrupted: true, ..course },
            () = sleep_until(end.unwrap_or(began)), if end.is_some() => return course,
            () = sleep_until(edit_at), if end.is_none() || course.edits.is_empty() => {
                let (took, now) = match edit(stage, visitors).await {
                    Ok(done) => done,
                    Err(error) => return Course { lost: Some(format!("{error:#}")), ..course },
                };
                note = format!("the route was edited to {now}/{}: `remora apply` ended when every sidecar had it, after {} ms", 100 - now, took.as_millis());
                screen.note(&note);
                course.edits.push(took);
                edit_at += EDIT_EVERY;
            }
            () = sleep_until(began + ROTATE_AT), if course.old_root.is_none() && long_enough => {
                match rotate(stage).await {
                    Ok(old) => course.old_root = Some(old),
                    Err(error) => return Course { lost: Some(format!("a new root: {error:#}")), ..course },
                }
                note = "a new root was announced; it signs when every sidecar trusts it".into();
                screen.note(&note);
            }
            _ = clock.tick() => {
                let view = stage.view().await;
                let tally = visitors.tally();
                let (elapsed, total) = (began.elapsed(), args.duration);
                screen.show(&Moment { elapsed, total, view: &view, tally: &tally, note: &note });
            }
        }
    }
}

/// Announces a new root. The one that signs so far.
async fn rotate(stage: &Stage) -> anyhow::Result<String> {
    let old = stage.authority().await?.root;
    stage.rotate_root().await?;
    Ok(old)
}

/// Changes the split and begins a new phase when every sidecar has it.
async fn edit(stage: &mut Stage, visitors: &Visitors) -> anyhow::Result<(Duration, u32)> {
    let wanted = {
        let mut tally = visitors.tally();
        tally.open = false;
        let failed = tally.failed;
        tally.failed_before_edit.get_or_insert(failed);
        let now = tally.phases.last().map_or(FIRST_SPLIT, |p| p.wanted);
        if now == FIRST_SPLIT { SECOND_SPLIT } else { FIRST_SPLIT }
    };
    let took = stage.split(wanted).await?;
    let mut tally = visitors.tally();
    tally.phases.push(Phase { wanted, ..Phase::default() });
    tally.open = true;
    Ok((took, wanted))
}
