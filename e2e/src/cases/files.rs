//! Secrets as files of a pod.

use std::rc::Rc;

use anyhow::{Result, ensure};

use super::{Case, With, case};
use crate::cluster::{Cluster, MACHINE};

pub(crate) fn cases() -> Vec<Case> {
    vec![case("a_pod_prints_its_secret", With::Others, a_pod_prints_its_secret)]
}

async fn a_pod_prints_its_secret(cluster: Rc<Cluster>) -> Result<String> {
    let vault = cluster.vault();
    vault.secret("db-password", "v1", "correct horse");
    cluster.namespace("files").await?;
    let name = &vault.name;
    cluster.kubectl.apply(&format!("
apiVersion: secrets-store.csi.x-k8s.io/v1
kind: SecretProviderClass
metadata: {{name: files-spc, namespace: files}}
spec:
  provider: azure
  parameters:
    usePodIdentity: 'false'
    useVMManagedIdentity: 'true'
    userAssignedIdentityID: '{MACHINE}'
    tenantId: '22222222-2222-4222-8222-222222222222'
    keyvaultName: '{name}'
    objects: |
      array:
        - |
          objectName: db-password
          objectType: secret
---
apiVersion: v1
kind: Pod
metadata: {{name: web, namespace: files}}
spec:
  terminationGracePeriodSeconds: 0
  containers:
    - {{name: web, image: docker.io/local/busybox:1, imagePullPolicy: Never, command: [sleep, '10000'], volumeMounts: [{{name: s, mountPath: /mnt/secrets-store, readOnly: true}}]}}
  volumes:
    - name: s
      csi: {{driver: secrets-store.csi.k8s.io, readOnly: true, volumeAttributes: {{secretProviderClass: files-spc}}}}
")).await?;
    cluster.running("files", "web").await?;
    let text = cluster.exec("files", "web", &["cat", "/mnt/secrets-store/db-password"]).await?;
    ensure!(text == "correct horse", "{text:?}");
    Ok(String::new())
}
