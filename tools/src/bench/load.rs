//! Sends a workload and measures.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, sleep_until, timeout};
use wal_tests::seed::Random;

use super::connection::{Connection, Endpoint};
use super::measurement::Measurement;
use super::processes;
use super::workload::Workload;

/// How a workload is sent.
#[derive(Clone, Debug)]
pub struct Load {
    /// Connections are spread over them evenly.
    pub endpoints: Vec<Endpoint>,
    /// What is sent.
    pub workload: Workload,
    /// How many connections there are.
    pub connections: usize,
    /// Sent, and not measured.
    pub warm_up: Duration,
    /// What is sent during this time is measured, however late it is answered: what takes long at
    /// the end is what a measurement must not leave out. Every connection of a closed loop sends at
    /// least one request that is measured.
    pub time: Duration,
    /// Requests per second of an open loop; `None`: a closed loop.
    pub rate: Option<f64>,
    /// Rows of the table that is read and updated.
    pub table_rows: u64,
    /// For the rows that are chosen.
    pub seed: u64,
    /// Processes whose processor time is measured.
    pub process_ids: Vec<u32>,
}

/// Creates and fills the tables, connects, sends, and measures.
///
/// # Errors
///
/// What keeps it from beginning. What fails later is counted.
pub async fn run(load: &Load) -> Result<Measurement, String> {
    let first = load.endpoints.first().ok_or("no endpoint was given")?;
    let mut connection = Connection::open(first).await?;
    load.workload
        .prepare(&mut connection, load.table_rows)
        .await?;
    drop(connection);
    let mut connections = Vec::with_capacity(load.connections);
    for place in 0..load.connections {
        let endpoint = &load.endpoints[place % load.endpoints.len()];
        connections.push(Connection::open(endpoint).await?);
    }
    let load = Arc::new(load.clone());
    let begin = Instant::now();
    let tasks: Vec<_> = connections
        .into_iter()
        .enumerate()
        .map(|(place, connection)| {
            let sender = Sender {
                load: Arc::clone(&load),
                place,
                begin,
            };
            tokio::spawn(sender.run(connection))
        })
        .collect();
    sleep_until(begin + load.warm_up).await;
    let before = processes::times(&load.process_ids);
    let mut sum = Measurement::new(load.workload.rows(), load.time);
    for task in tasks {
        sum.add(task.await.map_err(|error| error.to_string())?);
    }
    let after = processes::times(&load.process_ids);
    let times = after.into_iter().zip(before);
    sum.processor = times
        .map(|(after, before)| after.saturating_sub(before))
        .collect();
    Ok(sum)
}

/// What one connection does.
struct Sender {
    load: Arc<Load>,
    place: usize,
    begin: Instant,
}

impl Sender {
    async fn run(self, mut connection: Connection) -> Measurement {
        let load = &self.load;
        let mut random = Random::new(load.seed.wrapping_add(self.place as u64));
        let mut measured = Measurement::new(load.workload.rows(), load.time);
        let measure_from = self.begin + load.warm_up;
        let end = measure_from + load.time;
        let mut number = 0;
        let mut is_any_measured = false;
        loop {
            let due = self.due(number);
            let is_late = is_any_measured && Instant::now() >= end;
            if is_late || due.is_some_and(|due| due >= end) {
                break;
            }
            if let Some(due) = due {
                sleep_until(due).await;
            }
            let call = load.workload.next(&mut random, load.table_rows);
            // In an open loop the time for which it was too late to be sent counts as well.
            let start = due.unwrap_or_else(Instant::now);
            let answer = timeout(PATIENCE, connection.call(call)).await;
            let now = Instant::now();
            number += 1;
            let answer = answer.unwrap_or_else(|_| Err(format!("no answer within {PATIENCE:?}")));
            let is_broken = answer.is_err();
            if start >= measure_from {
                is_any_measured = true;
                match answer {
                    Ok(_) => measured.answer(now - measure_from, now - start),
                    Err(why) => measured.fail(why),
                }
            }
            if is_broken && !self.reconnect(&mut connection).await {
                break;
            }
        }
        measured
    }

    /// When this connection's request of this number is due; `None`: as soon as possible.
    fn due(&self, number: u32) -> Option<Instant> {
        let rate = self.load.rate?;
        let place = self.place as f64 + f64::from(number) * self.load.connections as f64;
        Some(self.begin + Duration::from_secs_f64(place / rate.max(1e-3)))
    }

    /// After a failure a kept connection may be closed, or in the middle of an answer.
    async fn reconnect(&self, connection: &mut Connection) -> bool {
        let endpoints = &self.load.endpoints;
        match Connection::open(&endpoints[self.place % endpoints.len()]).await {
            Ok(fresh) => {
                *connection = fresh;
                true
            }
            Err(_) => false,
        }
    }
}

const PATIENCE: Duration = Duration::from_secs(30);
