//! The proof: the page images of all nodes, compared byte by byte.

use super::DemoError;
use super::client::Image;
use super::nodes::Cluster;

/// Fetches the image of every node at the same data index and compares them. Returns what there is
/// to say.
pub(super) fn prove(cluster: &mut Cluster) -> Result<Vec<String>, DemoError> {
    let nodes: Vec<(String, String)> = cluster
        .nodes()
        .iter()
        .map(|n| (n.name.clone(), n.http_addr.clone()))
        .collect();
    let images = cluster.wait("all nodes to stand at the same entry", |client| {
        let fetched = |(_, address): &(String, String)| client.image(address);
        let images: Vec<Image> = nodes.iter().map(fetched).collect::<Result<_, _>>()?;
        if images
            .iter()
            .any(|image| image.data_index != images[0].data_index)
        {
            let indexes: Vec<u64> = images.iter().map(|image| image.data_index).collect();
            return Err(format!("data indexes {indexes:?}"));
        }
        Ok(images)
    })?;
    let (first, others) = images.split_first().expect("there are three nodes");
    for ((name, _), other) in nodes[1..].iter().zip(others) {
        if let Some(difference) = difference(first, other) {
            let pair = format!("{} and {name}", nodes[0].0);
            return Err(DemoError::Differ(format!("{pair}: {difference}")));
        }
    }
    let mut lines: Vec<String> = nodes
        .iter()
        .zip(&images)
        .map(|((name, _), image)| {
            let pages = image.bytes.len() / image.page_bytes.max(1);
            format!(
                "{name}: entry {}, {pages} pages, hash {}",
                image.data_index, image.hash
            )
        })
        .collect();
    lines.push(format!(
        "All {} bytes are equal on all {} nodes.",
        first.bytes.len(),
        nodes.len()
    ));
    Ok(lines)
}

/// What tells two images apart, if anything does.
fn difference(one: &Image, other: &Image) -> Option<String> {
    if one.bytes.is_empty() || one.bytes.len() != other.bytes.len() {
        return Some(format!(
            "{} and {} bytes",
            one.bytes.len(),
            other.bytes.len()
        ));
    }
    if let Some(offset) = one.bytes.iter().zip(&other.bytes).position(|(a, b)| a != b) {
        let page = offset / one.page_bytes.max(1) + 1;
        return Some(format!("page {page}, byte {offset} of the image"));
    }
    (one.hash != other.hash).then(|| format!("hashes {} and {}", one.hash, other.hash))
}
