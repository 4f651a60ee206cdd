package telemetry

import (
	"runtime"
	"runtime/debug"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
)

// Build says what the running binary was made from.
type Build struct {
	Version  string // module version, "devel" for a build from a work tree
	Revision string // commit, "unknown" when built without version control
	Go       string // Go release
	Modified bool   // the work tree had uncommitted changes
}

// ReadBuild returns what the Go toolchain recorded in the running binary.
func ReadBuild() Build {
	info, ok := debug.ReadBuildInfo()
	if !ok {
		info = &debug.BuildInfo{}
	}
	return buildFrom(info)
}

func buildFrom(info *debug.BuildInfo) Build {
	b := Build{Version: info.Main.Version, Revision: "unknown", Go: runtime.Version()}
	if b.Version == "" || b.Version == "(devel)" {
		b.Version = "devel"
	}
	for _, s := range info.Settings {
		switch s.Key {
		case "vcs.revision":
			b.Revision = s.Value
		case "vcs.modified":
			b.Modified = s.Value == "true"
		}
	}
	return b
}

// String returns one line for people: version, short revision, Go release.
func (b Build) String() string {
	const short = 12
	revision := b.Revision
	if len(revision) > short {
		revision = revision[:short]
	}
	if b.Modified {
		revision += ", modified"
	}
	return b.Version + " (" + revision + ", " + b.Go + ")"
}

// Version returns the running binary's version as --version prints it.
func Version() string { return ReadBuild().String() }

// Registry returns a new registry with the metrics every daemon has: Go
// runtime, process, and damselfly_build_info, which is always 1 and carries
// the build in its labels.
func Registry() *prometheus.Registry {
	b := ReadBuild()
	info := prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name:        "damselfly_build_info",
		Help:        "Always 1; the labels say what the running binary was built from.",
		ConstLabels: prometheus.Labels{"version": b.Version, "revision": b.Revision, "goversion": b.Go},
	}, func() float64 { return 1 })
	reg := prometheus.NewRegistry()
	reg.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}), info)
	return reg
}
