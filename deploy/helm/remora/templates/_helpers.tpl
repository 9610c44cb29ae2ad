{{/* The image of the control plane. */}}
{{- define "remora.image" -}}
{{- if .Values.image.digest -}}
{{ .Values.image.repository }}@{{ .Values.image.digest }}
{{- else -}}
{{ .Values.image.repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}
{{- end -}}
{{- end -}}

{{/* Refuses what the schema cannot say, and what it says where it is switched off. */}}
{{- define "remora.check" -}}
{{- if and (gt (int .Values.replicas) 1) (ne .Values.store.kind "etcd") -}}
{{- fail "replicas: a store on a volume is open in one process; set store.kind to etcd for more than one" -}}
{{- end -}}
{{- if and (eq .Values.store.kind "etcd") (not .Values.store.etcd.endpoints) -}}
{{- fail "store.etcd.endpoints: with store.kind etcd, name at least one HOST:PORT" -}}
{{- end -}}
{{- if has .Release.Namespace (list "default" "kube-system") -}}
{{- fail (printf "--namespace: no pod of the release's namespace gets a sidecar, which would be missed in %s; take another one, such as remora-system" .Release.Namespace) -}}
{{- end -}}
{{- if hasKey .Values.podLabels "app" -}}
{{- fail "podLabels.app: the Deployment and the Service find the pods by it; take another label" -}}
{{- end -}}
{{- end -}}

{{/* The ADDRESS of --store. */}}
{{- define "remora.etcd" -}}
etcd://{{ join "," .Values.store.etcd.endpoints }}{{ with .Values.store.etcd.prefix }}/{{ trimPrefix "/" . }}{{ end }}
{{- end -}}

{{/* Arguments of `remora control`. */}}
{{- define "remora.args" -}}
{{- $namespace := .Release.Namespace -}}
- control
- --kubernetes
- --data=/var/lib/remora
{{- if eq .Values.store.kind "etcd" }}
- --store={{ include "remora.etcd" . }}
{{- end }}
- --listen-tls=0.0.0.0:15012
- --tls-name=$(REMORA_CONTROL_SERVICE_HOST)
- --tls-name=remora-control.{{ $namespace }}.svc
- --listen-webhook=0.0.0.0:15017
{{- if ne $namespace "remora-system" }}
- --webhook-service={{ $namespace }}/remora-control
{{- end }}
- --inject-control={{ .Values.injection.control | default "$(REMORA_CONTROL_SERVICE_HOST):15012" }}
- --inject-image={{ .Values.injection.image | default (include "remora.image" .) }}
{{- with toString .Values.injection.native }}
- --inject-native={{ . }}
{{- end }}
{{- with .Values.injection.interception }}
- --inject-interception={{ . }}
{{- end }}
{{- with .Values.injection.concurrency }}
- --inject-concurrency={{ int . }}
{{- end }}
- --token-review=https://kubernetes.default.svc/apis/authentication.k8s.io/v1/tokenreviews
{{- with .Values.trustDomain }}
- --trust-domain={{ . }}
{{- end }}
{{- with .Values.outboundTrafficPolicy }}
- --outbound-traffic-policy={{ . }}
{{- end }}
{{- with .Values.logLevel }}
- {{ printf "--log-level=%s" . | quote }}
{{- end }}
{{- range .Values.extraArgs }}
- {{ . | quote }}
{{- end }}
{{- end -}}
