// Package mlog stands in for the module of this name, which the CSI driver's main package imports and which cannot be fetched
// everywhere. It has just what the driver calls; JSON logs are not among it.
package mlog

import (
	"context"
	"os"

	"k8s.io/klog/v2"
)

// LogFormat is the form of the log; both forms log as text here.
type LogFormat string

const (
	FormatText LogFormat = "text"
	FormatJSON LogFormat = "json"
)

// Setup returns what is to be called at the end of the process.
func Setup() func() { return klog.Flush }

// Fatal logs the error and ends the process.
func Fatal(err error) {
	klog.ErrorS(err, "fatal")
	klog.Flush()
	os.Exit(1)
}

// Error logs the error with its context.
func Error(msg string, err error, kv ...any) { klog.ErrorS(err, msg, kv...) }

// ValidateAndSetKlogLevelAndFormatGlobally does nothing: the level comes through klog's own flag.
func ValidateAndSetKlogLevelAndFormatGlobally(context.Context, klog.Level, LogFormat) error { return nil }
