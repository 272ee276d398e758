import { mount, unmount } from "svelte";
import { writable } from "svelte/store";
import { present } from "./page.js";
import App from "./App.svelte";

present((target, hub, first) => {
  const view = writable(first);
  const application = mount(App, { target, props: { namespaces: { hub }, view } });
  return { show: (next) => view.set(next), unmount: () => unmount(application) };
});
