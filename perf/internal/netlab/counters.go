package netlab

import (
	"context"
	"encoding/json"
	"fmt"
)

// Counters are what a host's link has carried since the lab was made, in
// bytes of Ethernet frames, and the frames that its token buckets dropped.
type Counters struct {
	SentBytes       int64 `json:"sent_bytes"`
	ReceivedBytes   int64 `json:"received_bytes"`
	SentDrops       int64 `json:"sent_drops"`
	ReceivedDropped int64 `json:"received_drops"`
}

// Sub returns what was carried since an earlier reading.
func (c Counters) Sub(earlier Counters) Counters {
	return Counters{
		SentBytes: c.SentBytes - earlier.SentBytes, ReceivedBytes: c.ReceivedBytes - earlier.ReceivedBytes,
		SentDrops: c.SentDrops - earlier.SentDrops, ReceivedDropped: c.ReceivedDropped - earlier.ReceivedDropped,
	}
}

// device is what `ip -s -j link show` says of one device.
type device struct {
	Name  string `json:"ifname"`
	Stats struct {
		RX struct {
			Bytes int64 `json:"bytes"`
		} `json:"rx"`
		TX struct {
			Bytes int64 `json:"bytes"`
		} `json:"tx"`
	} `json:"stats64"`
}

// queue is what `tc -s -j qdisc show` says of one queue.
type queue struct {
	Kind  string `json:"kind"`
	Drops int64  `json:"drops"`
}

// Counters reads the host's counters.
func (h *Host) Counters(ctx context.Context) (Counters, error) {
	links, err := devices(ctx, h.namespace, "eth0")
	if err != nil {
		return Counters{}, fmt.Errorf("counters of %s: %w", h.name, err)
	}
	c := Counters{SentBytes: links["eth0"].Stats.TX.Bytes, ReceivedBytes: links["eth0"].Stats.RX.Bytes}
	if c.SentDrops, err = drops(ctx, h.namespace, "eth0"); err != nil {
		return Counters{}, fmt.Errorf("counters of %s: %w", h.name, err)
	}
	if c.ReceivedDropped, err = drops(ctx, h.sw, h.port); err != nil {
		return Counters{}, fmt.Errorf("counters of %s: %w", h.name, err)
	}
	return c, nil
}

// ZoneBytes returns, per zone from 1 up, the bytes of frames that entered it
// from other zones and the core since the lab was made.
func (l *Lab) ZoneBytes(ctx context.Context) (map[int]int64, error) {
	if l.zones == 0 {
		return nil, nil
	}
	links, err := devices(ctx, l.namespace(switchName), "")
	if err != nil {
		return nil, fmt.Errorf("counters of the zones: %w", err)
	}
	entered := map[int]int64{}
	for z := 1; z <= l.zones; z++ {
		entered[z] = links[trunk(z)].Stats.TX.Bytes
	}
	return entered, nil
}

// devices returns the state of one device, or of all, by name.
func devices(ctx context.Context, ns, name string) (map[string]device, error) {
	args := []string{"ip", "-n", ns, "-s", "-j", "link", "show"}
	if name != "" {
		args = append(args, "dev", name)
	}
	out, err := run(ctx, args...)
	if err != nil {
		return nil, err
	}
	return parseDevices(out)
}

func parseDevices(out []byte) (map[string]device, error) {
	var list []device
	if err := json.Unmarshal(out, &list); err != nil {
		return nil, fmt.Errorf("read the output of ip: %w", err)
	}
	byName := map[string]device{}
	for _, d := range list {
		byName[d.Name] = d
	}
	return byName, nil
}

func drops(ctx context.Context, ns, dev string) (int64, error) {
	out, err := run(ctx, "tc", "-n", ns, "-s", "-j", "qdisc", "show", "dev", dev)
	if err != nil {
		return 0, err
	}
	return parseDrops(out)
}

func parseDrops(out []byte) (int64, error) {
	var list []queue
	if err := json.Unmarshal(out, &list); err != nil {
		return 0, fmt.Errorf("read the output of tc: %w", err)
	}
	for _, q := range list {
		if q.Kind == "tbf" {
			return q.Drops, nil
		}
	}
	return 0, nil
}
