package telemetry

import (
	"runtime/debug"
	"strings"
	"testing"
)

func TestBuild(t *testing.T) {
	b := buildFrom(&debug.BuildInfo{
		Main: debug.Module{Version: "(devel)"},
		Settings: []debug.BuildSetting{
			{Key: "vcs.revision", Value: "0123456789abcdef"},
			{Key: "vcs.modified", Value: "true"},
		},
	})
	if want := "devel (0123456789ab, modified, go"; !strings.HasPrefix(b.String(), want) {
		t.Errorf("got %q, want %q…", b, want)
	}
	b = buildFrom(&debug.BuildInfo{Main: debug.Module{Version: "v1.2.3"}})
	if want := "v1.2.3 (unknown, go"; !strings.HasPrefix(b.String(), want) {
		t.Errorf("got %q, want %q…", b, want)
	}
	if Version() == "" {
		t.Error("no version")
	}
}
