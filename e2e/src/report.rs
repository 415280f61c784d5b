//! Runs the cases and says what happened.

use std::panic::AssertUnwindSafe;
use std::process::ExitCode;
use std::rc::Rc;

use anyhow::Result;
use futures_util::FutureExt;
use futures_util::stream::{self, StreamExt};
use tokio::time::{Duration, Instant, timeout};

use crate::cases::{self, Case, With};
use crate::cluster::Cluster;

/// Cases at once, where they do not disturb each other: two cores, and pods that mostly wait.
const AT_ONCE: usize = 4;
/// Longest time of one case.
const LIMIT: Duration = Duration::from_secs(600);

/// Runs the cases whose name holds one of the filters, or all.
pub(crate) async fn run(cluster: &Rc<Cluster>, filters: &[String]) -> Result<ExitCode> {
    let start = Instant::now();
    let steps: Vec<_> = cluster.steps.iter().map(|(step, time)| format!("{step} {time:.1} s")).collect();
    println!("cluster: {}", steps.join(", "));
    let clock = Instant::now();
    cluster.apply_chart(&[]).await?;
    cluster.provider_answers().await?;
    println!("keyferry answers {:.1} s", clock.elapsed().as_secs_f64());
    let chosen: Vec<_> = cases::all()
        .into_iter()
        .filter(|case| filters.is_empty() || filters.iter().any(|filter| case.name.contains(filter.as_str())))
        .collect();
    let (beside, alone): (Vec<_>, Vec<_>) = chosen.into_iter().partition(|case| case.with == With::Others);
    let mut failed = Vec::new();
    let mut passed = 0;
    let mut count = |outcome: Option<String>| match outcome {
        None => passed += 1,
        Some(name) => failed.push(name),
    };
    stream::iter(beside.into_iter().map(|case| one(cluster, case)))
        .buffer_unordered(AT_ONCE)
        .for_each(|outcome| {
            count(outcome);
            std::future::ready(())
        })
        .await;
    for case in alone {
        count(one(cluster, case).await);
    }
    let unexpected = cluster.azure.unexpected();
    for request in &unexpected {
        println!("unexpected request to a store: {request}");
    }
    let ok = failed.is_empty() && unexpected.is_empty();
    for name in &failed {
        println!("failed: {name}");
    }
    println!("e2e: {:.0} s on a cluster of {} cores", start.elapsed().as_secs_f64(), cores());
    println!(
        "test result: {}. {passed} passed; {} failed; 0 ignored",
        if ok { "ok" } else { "FAILED" },
        failed.len()
    );
    Ok(if ok { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Runs one; gives its name if it failed.
async fn one(cluster: &Rc<Cluster>, case: Case) -> Option<String> {
    let start = Instant::now();
    let running = AssertUnwindSafe(timeout(LIMIT, (case.run)(cluster.clone()))).catch_unwind();
    let outcome = match running.await {
        Ok(Ok(outcome)) => outcome,
        Ok(Err(_)) => Err(anyhow::anyhow!("not done after {LIMIT:?}")),
        Err(_) => Err(anyhow::anyhow!("panicked, see above")),
    };
    let time = start.elapsed().as_secs_f64();
    match outcome {
        Ok(figure) => {
            let figure = if figure.is_empty() { figure } else { format!(": {figure}") };
            println!("test {} ... ok ({time:.1} s){figure}", case.name);
            None
        }
        Err(error) => {
            println!("test {} ... FAILED ({time:.1} s)\n{error:#}", case.name);
            Some(case.name.to_owned())
        }
    }
}

fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}
