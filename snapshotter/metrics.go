package snapshotter

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// metrics are the snapshotter's own; those of the process are in the registry.
type metrics struct {
	fill     *prometheus.HistogramVec
	ready    prometheus.Histogram
	bytes    *prometheus.CounterVec
	corrupt  prometheus.Counter
	layers   *prometheus.CounterVec
	evicted  prometheus.Counter
	lost     prometheus.Counter
	mountsUp prometheus.Gauge
}

func newMetrics(reg prometheus.Registerer) *metrics {
	m := &metrics{
		fill: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "damselfly_mount_fill_seconds", Help: "How long reads in lazy images waited for content that was missing.",
			Buckets: []float64{.001, .002, .005, .01, .02, .05, .1, .2, .5, 1, 2, 5, 10, 30, 60},
		}, []string{"result"}),
		ready: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "damselfly_image_ready_seconds", Help: "How long it took from the request for a lazy image's mount until it could be used.",
			Buckets: []float64{.005, .01, .02, .05, .1, .2, .5, 1, 2, 5, 10},
		}),
		bytes: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "damselfly_mount_bytes_total", Help: "Content brought to devices: as it is stored and decoded, for a reader or ahead of any.",
		}, []string{"form", "why"}),
		corrupt: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "damselfly_mount_corrupt_total", Help: "Groups that failed verification and were fetched again or refused.",
		}),
		layers: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "damselfly_layer_decisions_total", Help: "Layers that containerd asked for: lazy, or the reason why not.",
		}, []string{"result"}),
		evicted: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "damselfly_device_evicted_bytes_total", Help: "Bytes of lazy images' content that were evicted.",
		}),
		lost: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "damselfly_device_damaged_groups_total", Help: "Groups found damaged on the node's disk, and fetched again.",
		}),
		mountsUp: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "damselfly_mounts", Help: "Lazy images that are mounted.",
		}),
	}
	reg.MustRegister(m.fill, m.ready, m.bytes, m.corrupt, m.layers, m.evicted, m.lost, m.mountsUp)
	return m
}

// Filled implements fill.Metrics.
func (m *metrics) Filled(took time.Duration, err error) {
	result := "ok"
	if err != nil {
		result = "error"
	}
	m.fill.WithLabelValues(result).Observe(took.Seconds())
}

// Written implements fill.Metrics.
func (m *metrics) Written(stored, plain int64, ahead bool) {
	why := "demand"
	if ahead {
		why = "ahead"
	}
	m.bytes.WithLabelValues("stored", why).Add(float64(stored))
	m.bytes.WithLabelValues("plain", why).Add(float64(plain))
}

// Corrupt implements fill.Metrics.
func (m *metrics) Corrupt() { m.corrupt.Inc() }

// decided counts a decision about a layer.
func (m *metrics) decided(code string) {
	if code == "" {
		code = "lazy"
	}
	m.layers.WithLabelValues(code).Inc()
}
