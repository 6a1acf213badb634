//! Plays one behaviour, step by step.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use crate::answer::Answer;
use crate::call::Call;
use crate::expectation::Circumstances;
use crate::pattern::{Names, Pattern};
use crate::script::{Behaviour, Body, Request, Step, What};
use crate::stage::{PATIENCE, PAUSE, Stage};

/// Where a behaviour did not hold.
#[derive(Clone, Debug)]
pub(crate) struct Failure {
    /// The number of the step; none: before the first one.
    pub(crate) step: Option<usize>,
    pub(crate) text: String,
}

/// How the next request is sent.
#[derive(Clone, Copy, Debug)]
enum Manner {
    Once,
    Times { times: usize, at_once: usize },
    Until,
}

struct Player {
    stage: Option<Stage>,
    manner: Manner,
    patience: Duration,
    last: Answer,
}

/// What is not there yet is not waited for as long as what should be.
const PENDING_PATIENCE: Duration = Duration::from_secs(8);

/// Plays a behaviour to its end or its first failure.
pub(crate) fn play(behaviour: &Behaviour) -> Result<(), Failure> {
    let stage = caught(|| Stage::set_up(behaviour)).map_err(|error| Failure {
        step: None,
        text: format!("  set-up: {error}"),
    })?;
    let mut player = Player {
        stage,
        manner: Manner::Once,
        patience: PATIENCE,
        last: Answer::default(),
    };
    let pending_from = behaviour.pending.as_ref().map(|pending| pending.from_step);
    for (number, step) in behaviour.steps.iter().enumerate() {
        if pending_from == Some(number) {
            player.patience = PENDING_PATIENCE;
        }
        caught(|| player.step(step)).map_err(|error| Failure {
            step: Some(number),
            text: format!(
                "  {}:{}: {}",
                behaviour.file,
                step.line,
                error.replace('\n', "\n    ")
            ),
        })?;
    }
    Ok(())
}

/// The cluster under test panics when its patience ends: that too is a failure of this step.
fn caught<T>(act: impl FnOnce() -> Result<T, String>) -> Result<T, String> {
    let played = catch_unwind(AssertUnwindSafe(act));
    played.unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().map(String::as_str);
        let text = text.or_else(|| panic.downcast_ref::<&str>().copied());
        Err(text.unwrap_or("a panic without a text").to_owned())
    })
}

impl Player {
    fn step(&mut self, step: &Step) -> Result<(), String> {
        match &step.what {
            What::Action(action) => self
                .act(action)
                .map_err(|error| format!("{action}: {error}")),
            What::Request(request) => self.request(request),
            What::TestedBy(file, name) => tested_by(file, name),
        }
    }

    fn stage(&mut self) -> Result<&mut Stage, String> {
        self.stage
            .as_mut()
            .ok_or_else(|| "nothing was set up".to_owned())
    }

    fn act(&mut self, action: &str) -> Result<(), String> {
        let patience = self.patience;
        let (word, rest) = action.split_once(' ').unwrap_or((action, ""));
        let words: Vec<&str> = rest.split(' ').collect();
        match (word, words.as_slice()) {
            ("until", [""]) => self.manner = Manner::Until,
            ("times", [times, "at", "once", at_once]) => {
                let (Ok(times), Ok(at_once)) = (times.parse(), at_once.parse()) else {
                    return Err("these are numbers".to_owned());
                };
                self.manner = Manner::Times { times, at_once };
            }
            ("keep", [name]) => {
                let body = self.last.body.clone();
                self.stage()?.keep(name, body)?;
            }
            ("leader", [""]) => self.stage()?.find_leader(patience)?,
            ("identical", [""]) => self.stage()?.identical(),
            ("restart", ["all"]) => self.stage()?.restart_all(patience)?,
            ("database", [name, ..]) => {
                let sql = rest[name.len()..].trim();
                let name = name.strip_suffix(':').ok_or("NAME: SQL")?;
                self.stage()?.make_database(name, sql)?;
            }
            (_, [node, ..]) => {
                let rest = rest[node.len()..].trim();
                return self.act_on(word, node, rest);
            }
            _ => return Err("no such action".to_owned()),
        }
        Ok(())
    }

    /// An action on one node.
    fn act_on(&mut self, word: &str, node: &str, rest: &str) -> Result<(), String> {
        let patience = self.patience;
        let stage = self.stage()?;
        let node = stage.node(node)?;
        let rest = Pattern::parse(rest)?.text(&stage.names)?;
        match word {
            "start" if rest.is_empty() => stage.start(node, None),
            "start" => stage.start(node, Some(rest.strip_prefix("with ").ok_or("with FLAGS")?)),
            "kill" => stage.kill(node),
            "stop" => stage.stop(node)?,
            "ready" => stage.wait_ready(node, patience)?,
            "move" => stage.move_node(node),
            "ends" => {
                let text = rest.strip_prefix("saying ").ok_or("saying TEXT")?;
                stage.ends(node, text, patience)?;
            }
            "exists" | "absent" => {
                let path = stage.in_data_dir(node, &rest);
                if path.exists() != (word == "exists") {
                    return Err(format!("{} exists: {}", path.display(), path.exists()));
                }
            }
            "write" => {
                let (path, text) = rest.split_once(" | ").ok_or("PATH | text")?;
                let path = stage.in_data_dir(node, path);
                let folder = path.parent().ok_or("a file is in a folder")?;
                std::fs::create_dir_all(folder).map_err(|error| error.to_string())?;
                std::fs::write(path, text).map_err(|error| error.to_string())?;
            }
            _ => return Err("no such action".to_owned()),
        }
        Ok(())
    }

    fn request(&mut self, request: &Request) -> Result<(), String> {
        let manner = std::mem::replace(&mut self.manner, Manner::Once);
        let deadline = Instant::now() + self.patience;
        let stage = self.stage()?;
        let exchange = Exchange::new(stage, request)?;
        let (answer, kept) = match manner {
            Manner::Once => exchange.once()?,
            Manner::Times { times, at_once } => exchange.times(times, at_once)?,
            Manner::Until => loop {
                match exchange.once() {
                    Ok(good) => break good,
                    Err(error) if Instant::now() > deadline => {
                        return Err(format!("never as expected; at last: {error}"));
                    }
                    Err(_) => std::thread::sleep(PAUSE),
                }
            },
        };
        stage.names.extend(kept);
        self.last = answer;
        Ok(())
    }
}

/// A request that is ready to be sent, and what it is compared with.
struct Exchange<'a> {
    stage: &'a Stage,
    request: &'a Request,
    call: Call,
    node: usize,
}

impl<'a> Exchange<'a> {
    fn new(stage: &'a Stage, request: &'a Request) -> Result<Self, String> {
        let names = &stage.names;
        let body = match &request.body {
            Body::None => None,
            Body::Text(text) => Some(text.text(names)?.into_bytes()),
            Body::File(name) => {
                let file = stage.files.get(name).ok_or("there is no such file")?;
                Some(file.clone())
            }
        };
        let mut headers = Vec::new();
        for (name, value) in &request.headers {
            headers.push((name.clone(), value.text(names)?));
        }
        let typed = headers
            .iter()
            .any(|(name, _)| name.eq_ignore_ascii_case("content-type"));
        if !typed && matches!(request.body, Body::Text(_)) {
            headers.push(("Content-Type".to_owned(), "application/json".to_owned()));
        }
        let call = Call {
            method: request.method.clone(),
            target: request.target.text(names)?,
            headers,
            body,
        };
        Ok(Self {
            node: stage.node(&request.node)?,
            call: call.with_credentials(request.credentials.as_deref()),
            stage,
            request,
        })
    }

    fn once(&self) -> Result<(Answer, Names), String> {
        let address = self.stage.address(self.node);
        let shown = format!("{} {}", self.call.method, self.call.target);
        let answer = self.call.send(address);
        let answer = answer.map_err(|error| format!("{shown}: no answer: {error}"))?;
        let circumstances = Circumstances {
            names: &self.stage.names,
            address,
            has_users: self.stage.has_users(),
        };
        let compared = self.request.expected.compare(&answer, &circumstances);
        let kept = compared.map_err(|error| format!("{shown}\n{error}"))?;
        Ok((answer, kept))
    }

    /// Sends it many times from several threads; every answer has to be as expected.
    fn times(&self, times: usize, at_once: usize) -> Result<(Answer, Names), String> {
        let taken = AtomicUsize::new(0);
        let client = || {
            let mut last = Err("it was never sent".to_owned());
            while taken.fetch_add(1, Ordering::Relaxed) < times {
                last = Ok(self.once()?);
            }
            last
        };
        std::thread::scope(|scope| {
            let clients: Vec<_> = (0..at_once).map(|_| scope.spawn(client)).collect();
            let ended = clients.into_iter().map(|client| {
                client
                    .join()
                    .unwrap_or_else(|_| Err("a client panicked".to_owned()))
            });
            let mut ended: Vec<_> = ended.collect::<Result<_, _>>()?;
            ended.pop().ok_or_else(|| "no client".to_owned())
        })
    }
}

/// Whether a test of this name exists, and is not ignored.
pub(crate) fn tested_by(file: &str, name: &str) -> Result<(), String> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests");
    let path = folder.join(format!("{file}.rs"));
    let text = std::fs::read_to_string(&path);
    let text = text.map_err(|error| format!("tests/{file}.rs: {error}"))?;
    is_test_in(&text, name).map_err(|error| format!("tests/{file}.rs: {error}"))
}

/// Whether source text has a test of this name that is run.
pub(crate) fn is_test_in(text: &str, name: &str) -> Result<(), String> {
    let lines: Vec<&str> = text.lines().map(str::trim).collect();
    let declared = [format!("fn {name}("), format!("async fn {name}(")];
    let place = lines
        .iter()
        .position(|line| declared.iter().any(|start| line.starts_with(start)));
    let place = place.ok_or_else(|| format!("no function {name}"))?;
    let attributes = lines[..place].iter().rev();
    let attributes: Vec<_> = attributes
        .take_while(|line| line.starts_with("#[") || line.starts_with("///"))
        .collect();
    let is_test = |line: &&&&str| line.starts_with("#[test]") || line.starts_with("#[tokio::test");
    if !attributes.iter().any(|line| is_test(&line)) {
        return Err(format!("{name} is no test"));
    }
    if attributes.iter().any(|line| line.starts_with("#[ignore")) {
        return Err(format!("{name} is ignored"));
    }
    Ok(())
}
