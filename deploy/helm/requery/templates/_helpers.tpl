{{- define "requery.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 63 | trimSuffix "-" -}}
{{- else -}}
{{- $name := default .Chart.Name .Values.nameOverride -}}
{{- if contains $name .Release.Name -}}
{{- .Release.Name | trunc 63 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name $name | trunc 63 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{- define "requery.selector" -}}
app.kubernetes.io/name: {{ default .Chart.Name .Values.nameOverride }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "requery.labels" -}}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{ include "requery.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{- end -}}

{{- define "requery.serviceAccount" -}}
{{- default (ternary (include "requery.fullname" .) "default" .Values.serviceAccount.create) .Values.serviceAccount.name -}}
{{- end -}}

{{/* Defaults by device. */}}
{{- define "requery.resources" -}}
{{- if .Values.resources -}}
{{- toYaml .Values.resources -}}
{{- else if eq .Values.device "nvidia" -}}
requests: {cpu: "4", memory: 12Gi, ephemeral-storage: 1Gi}
limits: {memory: 12Gi, nvidia.com/gpu: 1}
{{- else -}}
requests: {cpu: "2", memory: 6Gi, ephemeral-storage: 1Gi}
limits: {memory: 6Gi}
{{- end -}}
{{- end -}}

{{/* Which series are those of the pods. */}}
{{- define "requery.series" -}}
{{- default (printf `job="%s/%s"` .Release.Namespace (include "requery.fullname" .)) .Values.autoscaling.keda.selector -}}
{{- end -}}
