module monis.app/mlog

go 1.21

require k8s.io/klog/v2 v2.110.1

require github.com/go-logr/logr v1.3.0 // indirect
