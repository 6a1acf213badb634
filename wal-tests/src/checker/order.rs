//! Graphs of operations that must come one after the other, and the circles in them.

use std::collections::{HashMap, HashSet, VecDeque};

/// Why one operation comes before another.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub enum Reason {
    /// The other one wrote over what it wrote.
    WriteWrite,
    /// The other one read what it wrote.
    WriteRead,
    /// The other one wrote over what it read.
    ReadWrite,
    /// It was over before the other one began.
    RealTime,
}

/// Nodes and the edges between them.
#[derive(Clone, Debug, Default)]
pub struct Graph {
    edges: Vec<Vec<(usize, Reason)>>,
}

impl Graph {
    /// So many nodes and no edges.
    #[must_use]
    pub fn new(nodes: usize) -> Self {
        Self {
            edges: vec![Vec::new(); nodes],
        }
    }

    /// Adds an edge, unless it leads back to where it begins.
    pub fn add(&mut self, from: usize, to: usize, reason: Reason) {
        if from != to {
            self.edges[from].push((to, reason));
        }
    }

    /// Adds a node without edges.
    pub fn add_node(&mut self) -> usize {
        self.edges.push(Vec::new());
        self.edges.len() - 1
    }

    /// A short circle in each component that has one: an edge for one of the reasons `one`, and then
    /// edges for the reasons `rest` that lead back. Each node comes with the reason why it is before
    /// the next.
    #[must_use]
    pub fn circles(&self, one: &[Reason], rest: &[Reason]) -> Vec<Vec<(usize, Reason)>> {
        let reasons = [one, rest].concat();
        let mut circles = Vec::new();
        for component in self.components(&reasons) {
            if component.len() < 2 {
                continue;
            }
            let inside: HashSet<usize> = component.iter().copied().collect();
            let mut shortest: Option<Vec<(usize, Reason)>> = None;
            let mut tries = 0;
            for &start in &component {
                for &(to, reason) in &self.edges[start] {
                    if !inside.contains(&to) || !one.contains(&reason) || tries == TRIES_MAX {
                        continue;
                    }
                    tries += 1;
                    let Some(back) = self.path(to, start, rest, &inside) else {
                        continue;
                    };
                    if shortest
                        .as_ref()
                        .is_none_or(|found| back.len() + 1 < found.len())
                    {
                        shortest = Some([vec![(start, reason)], back].concat());
                    }
                }
            }
            circles.extend(shortest);
        }
        circles
    }

    /// A shortest path over edges for these reasons.
    fn path(
        &self,
        from: usize,
        to: usize,
        reasons: &[Reason],
        inside: &HashSet<usize>,
    ) -> Option<Vec<(usize, Reason)>> {
        let mut came = HashMap::from([(from, None)]);
        let mut queue = VecDeque::from([from]);
        while let Some(node) = queue.pop_front() {
            if node == to {
                let mut path = Vec::new();
                let mut at = node;
                while let Some(Some((before, reason))) = came.get(&at) {
                    path.push((*before, *reason));
                    at = *before;
                }
                path.reverse();
                return Some(path);
            }
            for &(next, reason) in &self.edges[node] {
                if reasons.contains(&reason) && inside.contains(&next) && !came.contains_key(&next)
                {
                    came.insert(next, Some((node, reason)));
                    queue.push_back(next);
                }
            }
        }
        None
    }

    /// Strongly connected components over edges for these reasons (Tarjan, without recursion).
    fn components(&self, reasons: &[Reason]) -> Vec<Vec<usize>> {
        let count = self.edges.len();
        let mut search = Search {
            number: vec![usize::MAX; count],
            low: vec![0; count],
            on_stack: vec![false; count],
            stack: Vec::new(),
            next: 0,
            found: Vec::new(),
        };
        for root in 0..count {
            if search.number[root] != usize::MAX {
                continue;
            }
            // A node, and the edge that is to be looked at next.
            let mut path = vec![(root, 0)];
            search.enter(root);
            while let Some((node, edge)) = path.last_mut() {
                let node = *node;
                let Some(&(to, reason)) = self.edges[node].get(*edge) else {
                    path.pop();
                    search.leave(node);
                    if let Some((parent, _)) = path.last() {
                        search.low[*parent] = search.low[*parent].min(search.low[node]);
                    }
                    continue;
                };
                *edge += 1;
                if !reasons.contains(&reason) {
                    continue;
                }
                if search.number[to] == usize::MAX {
                    search.enter(to);
                    path.push((to, 0));
                } else if search.on_stack[to] {
                    search.low[node] = search.low[node].min(search.number[to]);
                }
            }
        }
        search.found
    }
}

/// The state of Tarjan's algorithm.
struct Search {
    number: Vec<usize>,
    low: Vec<usize>,
    on_stack: Vec<bool>,
    stack: Vec<usize>,
    next: usize,
    found: Vec<Vec<usize>>,
}

impl Search {
    fn enter(&mut self, node: usize) {
        self.number[node] = self.next;
        self.low[node] = self.next;
        self.next += 1;
        self.stack.push(node);
        self.on_stack[node] = true;
    }

    fn leave(&mut self, node: usize) {
        if self.low[node] != self.number[node] {
            return;
        }
        let mut component = Vec::new();
        while let Some(member) = self.stack.pop() {
            self.on_stack[member] = false;
            component.push(member);
            if member == node {
                break;
            }
        }
        self.found.push(component);
    }
}

/// Edges of a component with which a circle is tried: one is enough.
const TRIES_MAX: usize = 500;

#[cfg(test)]
mod tests {
    use super::*;

    use Reason::{ReadWrite, RealTime, WriteRead, WriteWrite};

    const ALL: [Reason; 4] = [WriteWrite, WriteRead, ReadWrite, RealTime];

    #[test]
    fn circles_are_found_and_chains_are_not() {
        let mut graph = Graph::new(6);
        for (from, to) in [(0, 1), (1, 2), (2, 3), (0, 3), (4, 5)] {
            graph.add(from, to, WriteRead);
        }
        graph.add(3, 3, WriteRead);
        assert_eq!(graph.circles(&ALL, &ALL), Vec::<Vec<_>>::new());
        graph.add(3, 1, ReadWrite);
        assert_eq!(graph.circles(&[WriteRead], &[WriteRead]).len(), 0);
        let circles = graph.circles(&[ReadWrite], &[WriteWrite, WriteRead]);
        assert_eq!(
            circles,
            [vec![(3, ReadWrite), (1, WriteRead), (2, WriteRead)]]
        );
        // With a second edge of that kind on every way back, one is not enough.
        let mut graph = Graph::new(2);
        graph.add(0, 1, ReadWrite);
        graph.add(1, 0, ReadWrite);
        assert_eq!(graph.circles(&[ReadWrite], &[WriteWrite]).len(), 0);
        assert_eq!(graph.circles(&[ReadWrite], &ALL).len(), 1);
    }

    #[test]
    fn each_component_gives_one_circle() {
        let mut graph = Graph::new(7);
        for (from, to) in [(0, 1), (1, 0), (1, 2), (2, 3), (3, 4), (4, 2), (5, 6)] {
            graph.add(from, to, RealTime);
        }
        let circles = graph.circles(&ALL, &ALL);
        let mut lengths: Vec<usize> = circles.iter().map(Vec::len).collect();
        lengths.sort_unstable();
        assert_eq!(lengths, [2, 3]);
    }
}
