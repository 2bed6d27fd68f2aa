//! The manifests that the end-to-end tests apply.

/// A script that prints each second: what its log has, no outage of whatever is between took away.
pub const CLOCK: &str = "while true; do date +%s; sleep 1; done";

/// A pod of the demo image that runs `script` in busybox's shell.
#[must_use]
pub fn shell_pod(name: &str, script: &str) -> String {
    let script = serde_json::Value::String(script.to_owned());
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, labels: {{app: {name}}}}}\nspec:\n  terminationGracePeriodSeconds: 2\n  \
         containers:\n  - name: main\n    image: kedge.dev/demo:1\n    command: [sh, -c, {script}]\n"
    )
}

/// A pod with a ConfigMap and a Secret (volume and environment) and its service account token, and these objects.
#[must_use]
pub fn furnished_pod(name: &str) -> String {
    format!(
        r#"apiVersion: v1
kind: ConfigMap
metadata: {{name: {name}-config}}
data: {{greeting: hello, limit: "3"}}
---
apiVersion: v1
kind: Secret
metadata: {{name: {name}-secret}}
stringData: {{password: anchor}}
---
apiVersion: v1
kind: Pod
metadata: {{name: {name}, labels: {{app: {name}}}}}
spec:
  terminationGracePeriodSeconds: 2
  containers:
  - name: main
    image: kedge.dev/demo:1
    command: [sh, -c, "trap 'exit 0' TERM; echo started; while true; do sleep 1; done"]
    env:
    - {{name: LIMIT, valueFrom: {{configMapKeyRef: {{name: {name}-config, key: limit}}}}}}
    - {{name: PASSWORD, valueFrom: {{secretKeyRef: {{name: {name}-secret, key: password}}}}}}
    - {{name: POD_NAME, valueFrom: {{fieldRef: {{fieldPath: metadata.name}}}}}}
    volumeMounts:
    - {{name: config, mountPath: /etc/config}}
    - {{name: secret, mountPath: /etc/secret}}
    - {{name: scratch, mountPath: /scratch}}
  volumes:
  - {{name: config, configMap: {{name: {name}-config}}}}
  - {{name: secret, secret: {{secretName: {name}-secret}}}}
  - {{name: scratch, emptyDir: {{}}}}
"#
    )
}

/// A pod with the demo image's HTTP server on port 8080 and probes.
#[must_use]
pub fn http_pod(name: &str) -> String {
    format!(
        r"apiVersion: v1
kind: Pod
metadata: {{name: {name}, labels: {{app: {name}}}}}
spec:
  terminationGracePeriodSeconds: 2
  containers:
  - name: main
    image: kedge.dev/demo:1
    ports: [{{name: http, containerPort: 8080}}]
    readinessProbe: {{httpGet: {{path: /healthz, port: http}}, periodSeconds: 1}}
    livenessProbe: {{httpGet: {{path: /healthz, port: 8080}}, periodSeconds: 5}}
"
    )
}

/// A Deployment of two and a DaemonSet, both with probes.
pub const WORKLOADS: &str = r"apiVersion: apps/v1
kind: Deployment
metadata: {name: web}
spec:
  replicas: 2
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      terminationGracePeriodSeconds: 2
      containers:
      - name: main
        image: kedge.dev/demo:1
        readinessProbe: {httpGet: {path: /healthz, port: 8080}, periodSeconds: 1}
---
apiVersion: apps/v1
kind: DaemonSet
metadata: {name: agent}
spec:
  selector: {matchLabels: {app: agent}}
  template:
    metadata: {labels: {app: agent}}
    spec:
      terminationGracePeriodSeconds: 2
      containers:
      - name: main
        image: kedge.dev/demo:1
        command: [sh, -c, 'exec sleep 100000']
        readinessProbe: {exec: {command: ['true']}, periodSeconds: 1}
";
