//! Imports archives into containerd through its content and images API, so that no registry is asked.
//!
//! Data path of an import: lease → blobs (children before parents) → image record → lease given back. Until the record is there the
//! lease alone keeps the blobs from containerd's garbage collector; afterwards the record does, through the labels on the manifest
//! that say what it refers to. The CRI plugin hears of the record by containerd's own event. Layers are unpacked by the CRI plugin
//! when a container first needs them.
//!
//! On failure the lease expires by itself ([`LEASE`]), and what was written goes with it; importing again is harmless.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use containerd_client::services::v1::{
    CreateImageRequest, CreateRequest, DeleteImageRequest, DeleteRequest, Image as Record, ListContainersRequest,
    ListImagesRequest, UpdateImageRequest, UpdateRequest, WriteAction, WriteContentRequest,
    containers_client::ContainersClient, content_client::ContentClient, images_client::ImagesClient,
    leases_client::LeasesClient,
};
use containerd_client::types::Descriptor;
use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;
use tokio::time::timeout;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, IntoStreamingRequest as _, Request, Status};

use crate::layout::{Blob, Layout, LayoutError};

/// The CRI plugin's namespace.
pub const CRI_NAMESPACE: &str = "k8s.io";
/// Marks what was imported here, for [`Containerd::prune`].
pub const IMPORTED_LABEL: &str = "kedge.dev/imported";
/// How long a failed import's blobs stay.
const LEASE: Duration = Duration::from_secs(3600);
/// A local socket; a disk that takes longer has other troubles.
const DEADLINE: Duration = Duration::from_secs(60);
/// containerd takes messages of 16 MiB; its own client sends 1 MiB at a time.
const CHUNK: usize = 1024 * 1024;

/// An import or another call to containerd failed.
#[derive(Debug, thiserror::Error)]
pub enum ImportError {
    /// The file cannot be read.
    #[error("read {path}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// It is no image archive.
    #[error("{path} is no image archive")]
    Layout {
        /// The file.
        path: PathBuf,
        /// Why.
        source: LayoutError,
    },
    /// containerd refused.
    #[error("{operation} {object}: {}", .source.message())]
    Call {
        /// What was asked.
        operation: &'static str,
        /// Of what.
        object: String,
        /// What containerd said.
        source: Box<Status>,
    },
    /// The namespace is no gRPC metadata value.
    #[error("namespace {0:?} must be letters, digits, '.', '_' and '-'")]
    Namespace(String),
}

/// An image record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Imported {
    /// The image's name.
    pub name: String,
    /// The digest of its manifest.
    pub digest: String,
    /// Whether Kedge imported it.
    pub ours: bool,
}

/// A client of one containerd, in one of its namespaces.
#[derive(Debug, Clone)]
pub struct Containerd {
    channel: Channel,
    namespace: tonic::metadata::AsciiMetadataValue,
}

impl Containerd {
    /// Nothing is dialled yet.
    ///
    /// # Errors
    /// When `namespace` cannot be one.
    pub fn new(socket: &Path, namespace: &str) -> Result<Self, ImportError> {
        let socket = socket.to_owned();
        let dial = tower::service_fn(move |_: http::Uri| {
            let socket = socket.clone();
            async move { UnixStream::connect(socket).await.map(TokioIo::new) }
        });
        Ok(Self {
            channel: Endpoint::from_static("http://localhost").connect_with_connector_lazy(dial),
            namespace: namespace
                .parse()
                .map_err(|_| ImportError::Namespace(namespace.to_owned()))?,
        })
    }

    fn request<T>(&self, message: T, lease: Option<&str>) -> Request<T> {
        let mut request = Request::new(message);
        self.mark(&mut request, lease);
        request
    }

    fn mark<T>(&self, request: &mut Request<T>, lease: Option<&str>) {
        request
            .metadata_mut()
            .insert("containerd-namespace", self.namespace.clone());
        if let Some(lease) = lease.and_then(|lease| lease.parse().ok()) {
            request.metadata_mut().insert("containerd-lease", lease);
        }
    }

    /// Imports the archive at `path`.
    ///
    /// # Errors
    /// When it is no image archive, or containerd does not take it.
    pub async fn import(&self, path: &Path) -> Result<Imported, ImportError> {
        let bytes = tokio::fs::read(path).await.map_err(|source| ImportError::Read {
            path: path.to_owned(),
            source,
        })?;
        let layout = Layout::read(&bytes).map_err(|source| ImportError::Layout {
            path: path.to_owned(),
            source,
        })?;
        drop(bytes);
        let lease = self.lease(&layout).await?;
        let result = self.store(&layout, &lease).await;
        let mut leases = LeasesClient::new(self.channel.clone());
        let delete = self.request(
            DeleteRequest {
                id: lease.clone(),
                sync: false,
            },
            None,
        );
        let released = call("give back lease", &lease, leases.delete(delete)).await;
        result?;
        released?;
        Ok(Imported {
            name: layout.name,
            digest: layout.manifest.digest,
            ours: true,
        })
    }

    async fn lease(&self, layout: &Layout) -> Result<String, ImportError> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let id = format!("kedge-import-{}-{}", now.as_nanos(), std::process::id());
        let labels = HashMap::from([("containerd.io/gc.expire".to_owned(), rfc3339(now + LEASE))]);
        let mut leases = LeasesClient::new(self.channel.clone());
        let create = self.request(CreateRequest { id: id.clone(), labels }, None);
        call("make a lease for", &layout.name, leases.create(create)).await?;
        Ok(id)
    }

    async fn store(&self, layout: &Layout, lease: &str) -> Result<(), ImportError> {
        let mut refs = HashMap::from([(
            "containerd.io/gc.ref.content.config".to_owned(),
            layout.config.digest.clone(),
        )]);
        for (n, layer) in layout.layers.iter().enumerate() {
            self.write(layer, HashMap::new(), lease).await?;
            refs.insert(format!("containerd.io/gc.ref.content.l.{n}"), layer.digest.clone());
        }
        self.write(&layout.config, HashMap::new(), lease).await?;
        self.write(&layout.manifest, refs, lease).await?;
        self.record(layout, lease).await
    }

    /// Writes one blob, or only its labels when it is there.
    async fn write(&self, blob: &Blob, labels: HashMap<String, String>, lease: &str) -> Result<(), ImportError> {
        let mut content = ContentClient::new(self.channel.clone());
        let messages = write_messages(blob, &labels, lease);
        let mut request = tokio_stream::iter(messages).into_streaming_request();
        self.mark(&mut request, Some(lease));
        let written = call("write", &blob.digest, async {
            let mut answers = content.write(request).await?.into_inner();
            while answers.message().await?.is_some() {}
            Ok::<(), Status>(())
        })
        .await;
        match written {
            Err(ImportError::Call { source, .. }) if source.code() == Code::AlreadyExists => {}
            other => return other,
        }
        if labels.is_empty() {
            return Ok(());
        }
        let info = containerd_client::services::v1::Info {
            digest: blob.digest.clone(),
            labels,
            ..Default::default()
        };
        let update = UpdateRequest {
            info: Some(info),
            update_mask: None,
        };
        call("label", &blob.digest, content.update(self.request(update, Some(lease)))).await?;
        Ok(())
    }

    async fn record(&self, layout: &Layout, lease: &str) -> Result<(), ImportError> {
        let labels = [("io.cri-containerd.image", "managed"), (IMPORTED_LABEL, "true")];
        let record = Record {
            name: layout.name.clone(),
            labels: labels.map(|(k, v)| (k.to_owned(), v.to_owned())).into(),
            target: Some(Descriptor {
                media_type: layout.manifest.media_type.clone(),
                digest: layout.manifest.digest.clone(),
                size: i64::try_from(layout.manifest.bytes.len()).unwrap_or(i64::MAX),
                annotations: HashMap::new(),
            }),
            ..Default::default()
        };
        let mut images = ImagesClient::new(self.channel.clone());
        let create = CreateImageRequest {
            image: Some(record.clone()),
            source_date_epoch: None,
        };
        match call(
            "record image",
            &layout.name,
            images.create(self.request(create, Some(lease))),
        )
        .await
        {
            Err(ImportError::Call { source, .. }) if source.code() == Code::AlreadyExists => {}
            other => return other.map(drop),
        }
        let update = UpdateImageRequest {
            image: Some(record),
            update_mask: None,
            source_date_epoch: None,
        };
        call(
            "update image",
            &layout.name,
            images.update(self.request(update, Some(lease))),
        )
        .await?;
        Ok(())
    }

    /// All images with a name; the CRI plugin's records by digest are left out.
    ///
    /// # Errors
    /// When containerd does not answer.
    pub async fn list(&self) -> Result<Vec<Imported>, ImportError> {
        let mut images = ImagesClient::new(self.channel.clone());
        let list = self.request(ListImagesRequest::default(), None);
        let answer = call("list", "images", images.list(list)).await?.into_inner();
        let named = answer
            .images
            .into_iter()
            .filter(|image| !image.name.starts_with("sha256:"));
        let mut all: Vec<Imported> = named
            .map(|image| Imported {
                ours: image.labels.contains_key(IMPORTED_LABEL),
                name: image.name,
                digest: image.target.map(|target| target.digest).unwrap_or_default(),
            })
            .collect();
        all.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(all)
    }

    /// Removes the images that were imported here, that no container uses and that `keep` does not name. Returns their names.
    ///
    /// # Errors
    /// When containerd does not answer or refuses.
    pub async fn prune(&self, keep: &[String]) -> Result<Vec<String>, ImportError> {
        let mut containers = ContainersClient::new(self.channel.clone());
        let list = self.request(ListContainersRequest::default(), None);
        let used: Vec<String> = call("list", "containers", containers.list(list))
            .await?
            .into_inner()
            .containers
            .into_iter()
            .map(|container| container.image)
            .collect();
        let mut images = ImagesClient::new(self.channel.clone());
        let mut removed = Vec::new();
        for image in self.list().await?.into_iter().filter(|image| image.ours) {
            if keep.contains(&image.name) || used.contains(&image.name) {
                continue;
            }
            let delete = DeleteImageRequest {
                name: image.name.clone(),
                sync: true,
                ..Default::default()
            };
            call("remove image", &image.name, images.delete(self.request(delete, None))).await?;
            removed.push(image.name);
        }
        Ok(removed)
    }
}

/// The chunks of a blob; the last commits.
fn write_messages(blob: &Blob, labels: &HashMap<String, String>, lease: &str) -> Vec<WriteContentRequest> {
    let total = i64::try_from(blob.bytes.len()).unwrap_or(i64::MAX);
    let message = |action: WriteAction, offset: usize, data: Bytes| WriteContentRequest {
        action: action.into(),
        r#ref: format!("{lease}-{}", blob.digest),
        total,
        expected: blob.digest.clone(),
        offset: i64::try_from(offset).unwrap_or(i64::MAX),
        data: data.to_vec(),
        labels: if action == WriteAction::Commit {
            labels.clone()
        } else {
            HashMap::new()
        },
    };
    let mut messages = Vec::new();
    let mut offset = 0;
    while offset < blob.bytes.len() {
        let end = blob.bytes.len().min(offset + CHUNK);
        messages.push(message(WriteAction::Write, offset, blob.bytes.slice(offset..end)));
        offset = end;
    }
    messages.push(message(WriteAction::Commit, offset, Bytes::new()));
    messages
}

async fn call<T>(
    operation: &'static str,
    object: &str,
    answer: impl Future<Output = Result<T, Status>>,
) -> Result<T, ImportError> {
    let answer = timeout(DEADLINE, answer).await;
    let late = || {
        Err(Status::deadline_exceeded(format!(
            "no answer in {} s",
            DEADLINE.as_secs()
        )))
    };
    answer.unwrap_or_else(|_| late()).map_err(|source| ImportError::Call {
        operation,
        object: object.to_owned(),
        source: Box::new(source),
    })
}

/// A time since 1970 as containerd's labels have it.
fn rfc3339(since_epoch: Duration) -> String {
    let seconds = since_epoch.as_secs();
    let (days, rest) = (seconds / 86_400, seconds % 86_400);
    // Howard Hinnant's civil_from_days, for days after 1970.
    let z = days + 719_468;
    let era = z / 146_097;
    let doe = z % 146_097;
    let yoe = (doe - doe / 1460 + doe / 36_524 - doe / 146_096) / 365;
    let doy = doe - (365 * yoe + yoe / 4 - yoe / 100);
    let mp = (5 * doy + 2) / 153;
    let day = doy - (153 * mp + 2) / 5 + 1;
    let month = if mp < 10 { mp + 3 } else { mp - 9 };
    let year = yoe + era * 400 + u64::from(month <= 2);
    format!(
        "{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}Z",
        rest / 3600,
        rest % 3600 / 60,
        rest % 60
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_written_as_rfc_3339_says() {
        let at = |seconds| rfc3339(Duration::from_secs(seconds));
        assert_eq!(at(0), "1970-01-01T00:00:00Z");
        assert_eq!(at(951_782_400), "2000-02-29T00:00:00Z");
        assert_eq!(at(1_795_564_799), "2026-11-24T23:59:59Z");
    }

    #[test]
    fn a_blob_is_cut_into_chunks_and_committed_once() {
        let blob = Blob {
            digest: "sha256:0".to_owned(),
            media_type: String::new(),
            bytes: vec![1; CHUNK * 2 + 1].into(),
        };
        let messages = write_messages(&blob, &HashMap::new(), "l");
        assert_eq!(
            messages.iter().map(|m| m.data.len()).collect::<Vec<_>>(),
            [CHUNK, CHUNK, 1, 0]
        );
        assert_eq!(messages.last().unwrap().offset, 2 * CHUNK as i64 + 1);
        assert_eq!(
            messages
                .iter()
                .filter(|m| m.action == i32::from(WriteAction::Commit))
                .count(),
            1
        );
    }
}
