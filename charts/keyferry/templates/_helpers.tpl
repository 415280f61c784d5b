{{- define "keyferry.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 63 | trimSuffix "-" -}}
{{- end -}}

{{- define "keyferry.fullname" -}}
{{- $name := include "keyferry.name" . -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 63 | trimSuffix "-" -}}
{{- else if contains $name .Release.Name -}}
{{- .Release.Name | trunc 63 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name $name | trunc 63 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{- define "keyferry.namespace" -}}
{{- default .Release.Namespace .Values.namespaceOverride -}}
{{- end -}}

{{- define "keyferry.selector" -}}
app.kubernetes.io/name: {{ include "keyferry.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "keyferry.labels" -}}
{{ include "keyferry.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{- end -}}

{{- define "keyferry.serviceAccount" -}}
{{- if .Values.serviceAccount.create -}}
{{- default (include "keyferry.fullname" .) .Values.serviceAccount.name -}}
{{- else -}}
{{- default "default" .Values.serviceAccount.name -}}
{{- end -}}
{{- end -}}

{{- define "keyferry.image" -}}
{{- with .Values.image -}}
{{- if .digest -}}
{{ .repository }}@{{ .digest }}
{{- else -}}
{{ .repository }}:{{ default $.Chart.AppVersion .tag }}
{{- end -}}
{{- end -}}
{{- end -}}

{{- /* Vendors that are replaced, as a JSON list: one may be given without a list. */ -}}
{{- define "keyferry.replaces" -}}
{{- if kindIs "string" .Values.replaces -}}
{{- toJson (compact (list .Values.replaces)) -}}
{{- else -}}
{{- toJson (default list .Values.replaces) -}}
{{- end -}}
{{- end -}}

{{- /* Backends that are served, as a JSON list. */ -}}
{{- define "keyferry.backends" -}}
{{- $backends := list -}}
{{- if or .Values.azure.enabled (has "azure" (include "keyferry.replaces" . | fromJsonArray)) -}}{{- $backends = append $backends "azure" -}}{{- end -}}
{{- if .Values.local.enabled -}}{{- $backends = append $backends "local" -}}{{- end -}}
{{- toJson $backends -}}
{{- end -}}

{{- /* What the schema cannot say. */ -}}
{{- define "keyferry.check" -}}
{{- range include "keyferry.replaces" . | fromJsonArray -}}
{{- if ne . "azure" -}}
{{- fail (printf "replaces: %q: this version of keyferry has no backend for it yet; it can replace: azure" .) -}}
{{- end -}}
{{- end -}}
{{- if not (include "keyferry.backends" . | fromJsonArray) -}}
{{- fail "no backend is switched on: set azure.enabled or local.enabled to true" -}}
{{- end -}}
{{- if and .Values.local.enabled (ne (len .Values.local.source) 1) -}}
{{- fail (printf "local.source has %d volume sources; local.enabled needs exactly one, such as hostPath, secret or configMap" (len .Values.local.source)) -}}
{{- end -}}
{{- if eq (int64 .Values.metrics.port) (int64 .Values.admin.port) -}}
{{- fail (printf "metrics.port and admin.port are both %v; give them different ports" .Values.metrics.port) -}}
{{- end -}}
{{- $names := list -}}
{{- range .Values.policy.rules -}}
{{- if has .name $names -}}
{{- fail (printf "policy.rules: the name %q is given twice; refusals name their rule, so each needs its own" .name) -}}
{{- end -}}
{{- $names = append $names .name -}}
{{- end -}}
{{- if .Values.policy.admission.enabled -}}
{{- if not .Values.policy.rules -}}
{{- fail "policy.admission.enabled needs policy.rules: without a rule everything is allowed" -}}
{{- end -}}
{{- if semverCompare "<1.30.0-0" .Capabilities.KubeVersion.Version -}}
{{- fail (printf "policy.admission.enabled needs Kubernetes 1.30 or newer, this is %s; the server enforces policy.rules without it" .Capabilities.KubeVersion.Version) -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{- define "keyferry.args" -}}
- serve
{{- range .Values.socketDirs }}
- --socket-dir={{ . }}
{{- end }}
- --backends={{ include "keyferry.backends" . | fromJsonArray | join "," }}
{{- if include "keyferry.replaces" . | fromJsonArray }}
- --wait-for-socket={{ .Values.replacesWaitSeconds }}s
{{- end }}
- --metrics-addr={{ .Values.metrics.address }}:{{ .Values.metrics.port }}
- --admin-addr=127.0.0.1:{{ .Values.admin.port }}
- --log-format={{ .Values.log.format }}
- --log-level={{ .Values.log.level }}
- --grace={{ .Values.graceSeconds }}s
{{- if has "azure" (include "keyferry.backends" . | fromJsonArray) }}
{{- with .Values.azure }}
- --azure-cloud-name={{ .cloudName }}
- --azure-construct-pem-chain={{ .constructPemChain }}
- --azure-write-cert-and-key-in-separate-files={{ .writeCertAndKeyInSeparateFiles }}
{{- if .environment }}
- --azure-environment-file=/etc/keyferry/azure/environment.json
{{- end }}
{{- if .serviceAccountIdentity }}
- --azure-service-account-identity
{{- end }}
{{- if .identityBinding.enabled }}
{{- with .identityBinding.url }}
- --azure-token-proxy-url={{ . }}
{{- end }}
{{- with .identityBinding.sniName }}
- --azure-sni-name={{ . }}
{{- end }}
{{- end }}
{{- end }}
{{- end }}
{{- if .Values.local.enabled }}
- --local-root=/local
{{- end }}
{{- if .Values.policy.rules }}
- --policy=/etc/keyferry/policy/policy.yaml
{{- end }}
{{- with .Values.limits }}
{{- if ne (toString .startMaxAge) "" }}
- --start-max-age={{ .startMaxAge }}
{{- end }}
{{- if ne (toString .repeatMaxAge) "" }}
- --repeat-max-age={{ .repeatMaxAge }}
{{- end }}
{{- if ne (toString .pinnedMaxAge) "" }}
- --pinned-max-age={{ .pinnedMaxAge }}
{{- end }}
{{- if ne (toString .lastGoodMaxAge) "" }}
- --last-good-max-age={{ .lastGoodMaxAge }}
{{- end }}
{{- if ne (toString .lastGoodDefault) "" }}
- --last-good-default={{ .lastGoodDefault }}
{{- end }}
{{- if not (kindIs "invalid" .cacheBytes) }}
- --cache-bytes={{ int64 .cacheBytes }}
{{- end }}
{{- if ne (toString .mountBudget) "" }}
- --mount-budget={{ .mountBudget }}
{{- end }}
{{- if not (kindIs "invalid" .maxAnswerBytes) }}
- --max-answer-bytes={{ int64 .maxAnswerBytes }}
{{- end }}
{{- end }}
{{- range .Values.connectTo }}
- --connect-to={{ . }}
{{- end }}
{{- range .Values.extraArgs }}
- {{ . | quote }}
{{- end }}
{{- end -}}

{{/* The cluster's authority without a token; with a token it comes by itself. */}}
{{- define "keyferry.authority" -}}
{{- if and .Values.azure.identityBinding.enabled (not .Values.azure.serviceAccountIdentity) }}true{{ end -}}
{{- end -}}
