// Browsers refuse a Worker to a page that was opened as a file, so the search would not work there. This stands in for it:
// the script runs in a hidden frame, and messages go through the frame's window.
if (location.protocol === "file:") {
  window.Worker = class extends EventTarget {
    constructor(url) {
      super();
      const frame = document.createElement("iframe");
      frame.hidden = true;
      document.body.appendChild(frame);
      const inside = frame.contentWindow;
      inside.document.open();
      inside.document.write("<!doctype html><html><body></body></html>");
      inside.document.close();
      const post = inside.postMessage.bind(inside);
      inside.postMessage = (data) => {
        const event = new MessageEvent("message", { data });
        this.dispatchEvent(event);
        if (this.onmessage) this.onmessage(event);
      };
      const loaded = new Promise((done) => {
        const script = inside.document.createElement("script");
        script.src = new URL(url, location.href);
        script.onload = done;
        inside.document.body.appendChild(script);
      });
      this.postMessage = (data) => loaded.then(() => post(data, "*"));
      this.terminate = () => frame.remove();
    }
  };
}
