package cluster

import (
	"context"
	"net/http"
	"time"
)

// Accelerated is an image whose index the supernode has made and offers.
type Accelerated struct {
	Image     string    `json:"image"`  // REGISTRY/REPO@DIGEST
	Digest    string    `json:"digest"` // of the image's manifest
	Index     string    `json:"index"`  // digest of the index's manifest
	Key       string    `json:"key"`    // ID of the key that signed
	Blobs     int       `json:"blobs"`
	Bytes     int64     `json:"bytes"`
	CreatedAt time.Time `json:"created_at"`
	Pushed    bool      `json:"pushed"` // the registry has it, too
	PushError string    `json:"push_error,omitempty"`
}

// Accelerated lists the images whose indexes the supernode offers, by name.
func (c *Client) Accelerated(ctx context.Context) ([]Accelerated, error) {
	var doc struct {
		Accelerated []Accelerated `json:"accelerated"`
	}
	err := c.call(ctx, "list accelerated images", http.MethodGet, "/api/v1/accelerated", nil, &doc)
	return doc.Accelerated, err
}
