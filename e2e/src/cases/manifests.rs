//! What users write: classes and pods, in the forms of their guides.

use crate::cluster::MACHINE;
use crate::standins::azure::TENANT;

/// Where pods of these cases have their secrets.
pub(crate) const MOUNT: &str = "/mnt/secrets-store";

/// A class of the machine's identity; `objects` is a list of names.
pub(crate) fn class(namespace: &str, name: &str, vault: &str, objects: &[&str]) -> String {
    class_with(namespace, name, &machine(vault), &entries(objects), "")
}

/// A class with its own parameters, the text of its `objects`, and lines below `spec`.
pub(crate) fn class_with(namespace: &str, name: &str, parameters: &str, objects: &str, spec: &str) -> String {
    let spec = indented(spec, 2);
    let parameters = indented(parameters, 4);
    let objects = indented(objects, 6);
    format!(
        "---
apiVersion: secrets-store.csi.x-k8s.io/v1
kind: SecretProviderClass
metadata: {{name: {name}, namespace: {namespace}}}
spec:
  provider: azure
{spec}  parameters:
{parameters}    objects: |
{objects}"
    )
}

/// Parameters of a class that reads with the machine's identity.
pub(crate) fn machine(vault: &str) -> String {
    format!(
        "usePodIdentity: 'false'
useVMManagedIdentity: 'true'
userAssignedIdentityID: '{MACHINE}'
tenantId: '{TENANT}'
keyvaultName: '{vault}'
"
    )
}

/// Parameters of a class that reads with the pod's own identity.
pub(crate) fn workload(vault: &str, client: &str) -> String {
    format!("clientID: '{client}'\ntenantId: '{TENANT}'\nkeyvaultName: '{vault}'\n")
}

/// The text of `objects` with one secret for each name.
pub(crate) fn entries(names: &[&str]) -> String {
    let mut text = "array:\n".to_owned();
    for name in names {
        text.push_str(&format!("  - |\n    objectName: {name}\n    objectType: secret\n"));
    }
    text
}

/// A pod that sleeps, with one volume of the class.
pub(crate) fn pod(namespace: &str, name: &str, class: &str) -> String {
    pod_with(namespace, name, &[("secrets-store", MOUNT, class)], "", "")
}

/// A pod with volumes (name, path, class), lines of its container and lines of its spec.
pub(crate) fn pod_with(
    namespace: &str,
    name: &str,
    volumes: &[(&str, &str, &str)],
    container: &str,
    spec: &str,
) -> String {
    let mut mounts = String::new();
    let mut sources = String::new();
    for (volume, path, class) in volumes {
        mounts.push_str(&format!("        - {{name: {volume}, mountPath: {path}, readOnly: true}}\n"));
        sources.push_str(&format!(
            "    - name: {volume}
      csi:
        driver: secrets-store.csi.k8s.io
        readOnly: true
        volumeAttributes: {{secretProviderClass: {class}}}
"
        ));
    }
    let container = indented(container, 6);
    let spec = indented(spec, 2);
    format!(
        "---
apiVersion: v1
kind: Pod
metadata: {{name: {name}, namespace: {namespace}, labels: {{app: {name}}}}}
spec:
  terminationGracePeriodSeconds: 0
{spec}  containers:
    - name: web
      image: docker.io/local/busybox:1
      imagePullPolicy: Never
      command: ['sleep', '10000']
{container}      volumeMounts:
{mounts}  volumes:
{sources}"
    )
}

/// The text with `by` blanks before each line, and a line end after the last.
fn indented(text: &str, by: usize) -> String {
    text.lines().map(|line| format!("{:by$}{line}\n", "")).collect()
}
