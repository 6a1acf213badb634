//! Hundreds of inputs that mean harm, sent to running nodes: each is refused or limited, the node
//! answers a write and a read right afterwards, and nothing outside of its data directory is
//! touched. What the inputs are and how they are judged: `wal-tests/hostile/README.md`.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod inputs;
mod load;
mod surroundings;

use std::io::Write;
use std::net::TcpStream;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use wal_tests::cluster::{Formation, ProcessCluster};
use wal_tests::{blunt, process};

use inputs::{Class, Ending, Input, Place};
use surroundings::{Surroundings, memory_peak, strange_files};

/// Small limits, so that few bytes reach them.
const FLAGS: [&str; 6] = [
    "-db-max-heap",
    "268435456",
    "-http-max-response",
    "16777216",
    "-http-max-body",
    "8388608",
];

/// SQLite's, the rows and JSON of an answer, a body as values, and a node at rest.
const MEMORY_BYTES_MAX: u64 = 1 << 30;

/// How quickly a node has to serve after an input.
const SERVED_WITHIN: Duration = Duration::from_secs(1);

/// A machine that is busy with something else may fail that, but not so many times in a row.
const ATTEMPTS: usize = 8;

/// An input that takes longer is named, so that the test can be kept short.
const SLOW: Duration = Duration::from_secs(3);

/// For one input. Whatever takes longer is not limited.
const PATIENCE: Duration = Duration::from_secs(60);

/// One node with its surroundings.
pub(crate) struct Lane {
    pub(crate) cluster: ProcessCluster,
    surroundings: Surroundings,
    process: u32,
    /// What nothing may change.
    state: Value,
    /// Answers that were not as they have to be.
    wrong: Mutex<Vec<String>>,
}

impl Lane {
    pub(crate) fn new() -> Self {
        let surroundings = Surroundings::new();
        let mut cluster = ProcessCluster::prepare(1, &Formation::Join, &FLAGS);
        cluster.surround(surroundings.path());
        cluster.start_all(&Formation::Join);
        let address = cluster.address(0).to_owned();
        let created = cluster.client().execute(&address, &schema());
        let _ = created.expect_success();
        let mut lane = Self {
            process: cluster.process_id(0),
            cluster,
            surroundings,
            state: Value::Null,
            wrong: Mutex::default(),
        };
        lane.state = lane.served().unwrap();
        lane
    }

    fn address(&self) -> &str {
        self.cluster.address(0)
    }

    fn place(&self) -> Place {
        Place {
            address: self.address().to_owned(),
            out: self.surroundings.out(),
            data: self.cluster.data_dir(0).display().to_string(),
        }
    }

    /// A write, and a read that sees it: returns what must not change.
    fn served(&self) -> Result<Value, String> {
        let count = json!(["UPDATE health SET n = n + 1"]);
        let written = self.cluster.client().execute(self.address(), &count);
        let wal_tests::client::Outcome::Answered(answer) = written else {
            return Err(format!("{written:?}"));
        };
        if let Some(error) = answer.error() {
            return Err(error.to_owned());
        }
        let client = self.cluster.client();
        let rows = client.query(self.address(), "weak", STATE)?;
        Ok(json!(rows))
    }

    /// Sends one input and judges what it came to; then the node has to serve at once. Returns how
    /// long the first attempt at that took.
    pub(crate) fn try_out(&self, input: &Input) -> Duration {
        let begin = Instant::now();
        match input.ending {
            Ending::ClientGone => {
                let mut stream = blunt::connect(self.address(), PATIENCE);
                stream.write_all(&input.bytes).unwrap();
                thread::sleep(Duration::from_millis(80));
            }
            _ => {
                let answer = blunt::exchange(self.address(), &input.bytes, PATIENCE);
                if let Err(problem) = judge(input, &answer) {
                    let body: String = answer.body.chars().take(500).collect();
                    let status = answer.status;
                    let wrong = format!("{}: {problem}: {status:?} {body}", input.name);
                    self.wrong.lock().unwrap().push(wrong);
                }
            }
        }
        let elapsed = begin.elapsed();
        if elapsed > SLOW {
            println!("{elapsed:?} for {}", input.name);
        }
        let mut first = None;
        for attempt in 1..=ATTEMPTS {
            let start = Instant::now();
            let served = self.served();
            let elapsed = start.elapsed();
            let first = *first.get_or_insert(elapsed);
            assert_eq!(
                served.as_ref(),
                Ok(&self.state),
                "after {}: something is different",
                input.name
            );
            if elapsed <= SERVED_WITHIN {
                self.assert_in_place(input);
                return first;
            }
            assert!(attempt < ATTEMPTS, "slow after {}: {elapsed:?}", input.name);
        }
        unreachable!("the last attempt has returned or failed")
    }

    #[track_caller]
    fn assert_in_place(&self, input: &Input) {
        let log = self.cluster.data_dir(0).with_extension("log");
        let allowed = [
            log.as_path(),
            process::binary(),
            "/usr".as_ref(),
            "/lib".as_ref(),
        ];
        let strange = strange_files(self.process, self.cluster.data_dir(0), &allowed);
        assert!(strange.is_empty(), "after {}: {strange:?}", input.name);
    }

    /// The same process, within its memory, and nothing around it touched.
    #[track_caller]
    pub(crate) fn assert_unharmed(&mut self) {
        let wrong = self.wrong.lock().unwrap().join("\n");
        assert!(wrong.is_empty(), "{wrong}");
        assert!(!self.cluster.has_ended(0));
        let peak = memory_peak(self.process);
        println!("{} MiB at most", peak >> 20);
        assert!(peak < MEMORY_BYTES_MAX, "{} MiB", peak >> 20);
        self.surroundings.assert_untouched();
        self.cluster.assert_healthy_logs();
    }
}

/// Everything that is to stay as it is.
const STATE: &str = "SELECT (SELECT count(*) || ' ' || total(length(sql)) FROM sqlite_master), \
     (SELECT group_concat(v) FROM ten), (SELECT count(*) FROM scratch), \
     (SELECT count(*) FROM looping), (SELECT count(*) FROM r0) \
     FROM health WHERE n > 0";

fn schema() -> Value {
    let mut statements = vec![
        "CREATE TABLE health(n)".to_owned(),
        "INSERT INTO health VALUES(0)".to_owned(),
        "CREATE TABLE ten(v)".to_owned(),
        "INSERT INTO ten VALUES(0), (1), (2), (3), (4), (5), (6), (7), (8), (9)".to_owned(),
        "CREATE TABLE scratch(v)".to_owned(),
        "CREATE TABLE looping(v)".to_owned(),
        "CREATE TRIGGER loops AFTER INSERT ON looping BEGIN INSERT INTO scratch \
         SELECT count(*) FROM ten a, ten b, ten c, ten d, ten e, ten f, ten g, ten h, ten i, \
         ten j, ten k, ten l, ten m, ten n, ten o, ten p; END"
            .to_owned(),
        "CREATE TABLE r0(v)".to_owned(),
    ];
    // Triggers that fire one another, deeper than they may.
    for number in 0..220 {
        let next = number + 1;
        statements.push(format!("CREATE TABLE r{next}(v)"));
        statements.push(format!(
            "CREATE TRIGGER r{number}r AFTER INSERT ON r{number} \
             BEGIN INSERT INTO r{next} VALUES(new.v); END"
        ));
    }
    json!(statements)
}

/// Words by which a limit says what it is.
const LIMITS: [&str; 19] = [
    "Expression tree is too large",
    "LIKE or GLOB pattern too complex",
    "Recursion limit",
    "at most 64 tables",
    "database or disk is full",
    "execute timeout",
    "malformed JSON",
    "out of memory",
    "parser stack overflow",
    "query timeout",
    "result too large",
    "too big",
    "too many arguments",
    "too many columns",
    "too many levels of trigger recursion",
    "too many terms",
    "would take too long",
    "triggers nested too deep",
    "variable number must be between",
];

/// Whether an answer is what it has to be.
fn judge(input: &Input, answer: &blunt::BluntAnswer) -> Result<(), String> {
    let parsed: Value = serde_json::from_str(&answer.body).unwrap_or_default();
    let results = parsed["results"].as_array();
    let mut failed = results.into_iter().flatten();
    let error = parsed["error"]
        .as_str()
        .or_else(|| failed.find_map(|result| result["error"].as_str()));
    let is_right = match input.class {
        Class::Closed => matches!(answer.status, None | Some(400)),
        Class::Harmless => answer.status == Some(200) && results.is_some() && error.is_none(),
        Class::Limited => {
            let known = |error: &str| LIMITS.iter().any(|limit| error.contains(limit));
            answer.status == Some(200) && error.is_some_and(known)
        }
        Class::Refused => match answer.status {
            Some(200) => error.is_some(),
            status => status == Some(400),
        },
        Class::Status(expected) => answer.status == Some(expected),
    };
    is_right
        .then_some(())
        .ok_or_else(|| format!("{:?} was expected", input.class))
}

/// Connections that send a byte now and then: of a head, or of a body.
fn dawdle(address: &str, is_over: &AtomicBool) -> usize {
    let body =
        format!("POST /db/execute HTTP/1.1\r\nHost: {address}\r\nContent-Length: 99999\r\n\r\n[");
    let begin = |number: usize| {
        let mut stream = blunt::connect(address, PATIENCE);
        let start = if number.is_multiple_of(2) {
            "GET /status HTTP/1.1\r\nA: "
        } else {
            &body
        };
        stream.write_all(start.as_bytes()).unwrap();
        stream
    };
    let mut streams: Vec<TcpStream> = (0..200).map(begin).collect();
    while !is_over.load(Ordering::Relaxed) {
        thread::sleep(Duration::from_millis(500));
        // The node may have lost its patience with some.
        streams.retain_mut(|stream| stream.write_all(b"1").is_ok());
    }
    streams.len()
}

#[test]
fn whatever_is_sent_is_refused_or_limited_and_the_node_goes_on() {
    let mut lanes: Vec<Lane> = (0..3).map(|_| Lane::new()).collect();
    let inputs: Vec<Vec<Input>> = lanes
        .iter()
        .map(|lane| inputs::all(&lane.place()))
        .collect();
    let count = inputs[0].len();
    assert!(count >= 500, "{count} inputs");
    let is_over = AtomicBool::new(false);
    let mut latencies: Vec<Duration> = thread::scope(|scope| {
        let slow = scope.spawn(|| dawdle(lanes[0].address(), &is_over));
        let lane_count = lanes.len();
        let working: Vec<_> = lanes
            .iter()
            .zip(&inputs)
            .enumerate()
            .map(|(number, (lane, inputs))| {
                let mine = inputs.iter().skip(number).step_by(lane_count);
                scope.spawn(move || mine.map(|input| lane.try_out(input)).collect::<Vec<_>>())
            })
            .collect();
        let joined: Vec<_> = working
            .into_iter()
            .map(thread::ScopedJoinHandle::join)
            .collect();
        is_over.store(true, Ordering::Relaxed);
        println!("{} slow connections were still open", slow.join().unwrap());
        joined
            .into_iter()
            .flat_map(|latencies| latencies.expect("reported above"))
            .collect()
    });
    latencies.sort_unstable();
    println!(
        "{count} inputs; a write and a read right afterwards took {:?} in the middle, {:?} at most",
        latencies[count / 2],
        latencies[count - 1]
    );
    let wrong: Vec<String> = lanes
        .iter()
        .flat_map(|lane| std::mem::take(&mut *lane.wrong.lock().unwrap()))
        .collect();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    for lane in &mut lanes {
        lane.assert_unharmed();
    }
}
