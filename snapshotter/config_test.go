package snapshotter

import (
	"strings"
	"testing"
	"time"

	"github.com/damselfly-io/damselfly/snapshotter/device"
)

func TestValidate(t *testing.T) {
	valid := func() *Config {
		return &Config{
			Address: "/a", Dfdaemon: "/d", Keeper: "/k", HTTP: "127.0.0.1:1", Backend: "auto",
			LookupTimeout: time.Second, ReadTimeout: time.Second, FillMemory: 32 << 20,
		}
	}
	for want, change := range map[string]func(*Config){
		"":               func(*Config) {},
		"http":           func(c *Config) { c.HTTP = "localhost" },
		"backend":        func(c *Config) { c.Backend = "nfs" },
		"lookup-timeout": func(c *Config) { c.LookupTimeout = 0 },
		"read-timeout":   func(c *Config) { c.ReadTimeout = -1 },
		"fill-memory":    func(c *Config) { c.FillMemory = 1 << 20 },
		"address":        func(c *Config) { c.Address = "" },
		"dfdaemon":       func(c *Config) { c.Dfdaemon = "" },
		"keeper":         func(c *Config) { c.Keeper = "" },
	} {
		c := valid()
		change(c)
		err := c.Validate()
		if (err == nil) != (want == "") || err != nil && !strings.HasPrefix(err.Error(), want+": ") {
			t.Errorf("%s: %v", want, err)
		}
	}
}

func TestSocketsBeside(t *testing.T) {
	for in, want := range map[string]string{
		"/run/damselfly/dfdaemon.sock": "/run/damselfly/dfdaemon-fds.sock", "/run/x": "/run/x-fds", "/run.d/x": "/run.d/x-fds",
	} {
		if got := besideSocket(in, "-fds"); got != want {
			t.Errorf("beside %s: %s", in, got)
		}
	}
}

func TestTablesAreKeptUntilImagesAreKnown(t *testing.T) {
	if s := (&snapshotter{}); !s.keep(device.Key{}) {
		t.Error("a table went while nobody knew the images")
	}
}
